"""Named configs: modules are found, and functions that return no config raise clear errors."""

import importlib.util
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

from experiments.pretrain import mm1_tiny
from mm1_jax.launch.__main__ import main
from mm1_jax.launch.named_configs import import_module
from mm1_jax.launch.run_folder import Launch
from mm1_jax.models.connectors.average_pooling import AveragePooling
from mm1_jax.models.mm1 import MM1

ROOT = Path(__file__).parents[2]
# Further options that each tool needs.
TOOLS = {
    "benchmark_input": [],
    "compute_lengths": [],
    "convert_records": ["--format=jsonl", "--input=x", "--output=x", "--license=x"],
    "hash_batches": [],
    "show_batch": ["--output=x.html"],
    "snapshot": ["--steps=1", "--output=x"],
    "train_tokenizer": ["--output=x"],
}


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    """A module in the current folder whose config raises an error that proves it was found."""
    name = f"module_of_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(
        "def config():\n    raise ValueError('it is found')\n"
        "def named_configs():\n    return {'config': config}\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    yield name
    sys.modules.pop(name, None)


@pytest.mark.parametrize("tool", TOOLS)
def test_every_tool_finds_a_module_of_the_current_folder(own_module, capsys, tool):
    spec = importlib.util.spec_from_file_location(tool, ROOT / "tools" / f"{tool}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = "--lengths_for" if tool == "convert_records" else "--config"
    argv = [f"--module={own_module}", f"{config}=config", *TOOLS[tool]]
    assert module.main(argv) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.endswith("it is found\n")


def test_the_list_of_tools_is_complete():
    with_module = {
        path.stem
        for path in (ROOT / "tools").glob("*.py")
        if '"--module"' in (text := path.read_text()) or "add_config_options" in text
    }
    assert with_module == set(TOOLS)


def test_a_module_of_the_current_folder_comes_before_those_beside_a_script(own_module):
    Path("snapshot.py").write_text("is_own = True\n")
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        assert import_module("snapshot", "--module").is_own
    finally:
        del sys.modules["snapshot"]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("no_such_module", "cannot import 'no_such_module': no such file is in {cwd}"),
        ("./own/configs.py", "expected a module as `import` names it, own.configs"),
        ("configs.py", "expected a module as `import` names it, configs"),
        ("", "--module=: expected a module"),
        (".configs", "expected a module"),
        ("experiments.mine", "give a folder of your own another name"),
    ],
)
def test_a_missing_module_is_explained(own_module, name, said):
    with pytest.raises(ValueError) as error:
        import_module(name, "--module")
    assert said.format(cwd=os.getcwd()) in str(error.value)


def test_a_folder_called_experiments_does_not_hide_the_package(tmp_path):
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "__init__.py").write_text("")
    code = (
        "from mm1_jax.launch.named_configs import import_module\n"
        "print(import_module('experiments', '').__file__)\n"
        "try:\n    import_module('experiments.golden.nothing', '--module')\n"
        "except ValueError as error:\n    print(error)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    first, second = result.stdout.splitlines()
    assert Path(first) == ROOT / "experiments" / "__init__.py"
    assert f"the package is {ROOT / 'experiments'}" in second


def test_a_module_that_ends_the_process_does_not_end_a_command_with_0(own_module):
    Path("ending.py").write_text("import sys\nsys.exit(0)\n")
    with pytest.raises(ValueError, match="--module=ending: its import ends the process"):
        import_module("ending", "--module")


def test_a_failing_import_inside_a_module_is_not_a_missing_module(own_module):
    Path("broken.py").write_text("import a_package_that_is_not_there\n")
    with pytest.raises(ModuleNotFoundError, match="a_package_that_is_not_there"):
        import_module("broken", "--module")


def _forgets_to_return():
    cfg = mm1_tiny()
    cfg.trainer.max_steps = 3


def _misspells():
    return mm1_tiny().trainer.set(max_step=3)


def _with(path, value):
    def make():
        cfg = mm1_tiny()
        cfg.set_recursively(path.split("."), value=value)
        return cfg

    return make


WRONG = {
    "none": (_forgets_to_return, "returned None; does the function lack its last line"),
    "class": (lambda: MM1, "returned the class MM1; expected an Experiment.Config"),
    "number": (lambda: 3, "returned 3; expected an Experiment.Config"),
    "model": (lambda: mm1_tiny().model, "returned a config of MM1; expected an Experiment.Config"),
    "misspelt": (_misspells, "test_named_configs.py:"),
    "arguments": (lambda size: mm1_tiny(), "needs arguments; give them by functools.partial"),
    "config": (mm1_tiny(), "is a config, expected a function that makes one"),
    "text": ("mm1_tiny", "is 'mm1_tiny', expected a function"),
    "evals": (
        _with("evals", list(mm1_tiny().evals.values())),
        "evals is a list, expected a dict from texts to configs of Evaluator",
    ),
    "model_class": (
        _with("model", MM1),
        "model is the class MM1, expected a config of MM1; write",
    ),
    "connector_class": (
        _with("model.connector", AveragePooling),
        "model.connector is the class AveragePooling, expected a config or None; write Average",
    ),
    "connector_name": (
        _with("model.connector", "average_pooling"),
        "model.connector='average_pooling': expected a config or None; import the class and write",
    ),
    "no_optimizer": (_with("trainer.optimizer", None), "trainer.optimizer is None, expected a c"),
    "no_decoder": (_with("model.decoder", None), "model.decoder is None, expected a config"),
    "steps": (_with("trainer.max_steps", "100"), "trainer.max_steps='100': expected a whole num"),
    "frozen": (
        _with("trainer.optimizer.frozen", "vision_encoder"),
        "trainer.optimizer.frozen='vision_encoder': expected a tuple of texts",
    ),
}


@pytest.fixture
def module(monkeypatch):
    module = types.ModuleType("wrong_experiments")
    module.named_configs = lambda: {name: make for name, (make, _) in WRONG.items()}
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


@pytest.mark.parametrize("name", WRONG)
def test_a_function_that_makes_no_experiment_is_explained_in_one_sentence(module, name):
    with pytest.raises(ValueError) as error:
        Launch(name, module.__name__).resolved_config()
    assert WRONG[name][1] in str(error.value) and "\n" not in str(error.value)


def test_a_launch_ends_with_2(module, capsys):
    options = ["--module=wrong_experiments", "--config=none", "--print_config"]
    assert main(options) == 2
    assert capsys.readouterr().err.startswith("error: --config=none: wrong_experiments.named_conf")


def test_named_configs_must_return_a_dict(module):
    module.named_configs = lambda: [mm1_tiny]
    with pytest.raises(ValueError, match="expected a dict from names to functions"):
        Launch("none", module.__name__).resolved_config()


def test_a_negated_field_takes_no_value(capsys):
    with pytest.raises(SystemExit) as exit:
        main(["--config=mm1_tiny", "--noconfig.trainer.checkpointer.checksums=true"])
    assert exit.value.code == 2
    assert "takes no value, it sets the field to False" in capsys.readouterr().err
