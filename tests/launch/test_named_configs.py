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
from mm1_jax.launch.launch import Launch
from mm1_jax.launch.named_configs import described_configs, import_module, named_configs
from mm1_jax.launch.names_in_files import read_names
from mm1_jax.models.connectors.average_pooling import AveragePooling
from mm1_jax.models.mm1 import MM1

ROOT = Path(__file__).parents[2]
# Further options that each tool needs.
TOOLS = {
    "benchmark_input": [],
    "compare": ["x"],
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


def _code(tool):
    """Returns the file of a command in the package, or of a tool in the checkout."""
    folder = "tools" if tool.startswith("benchmark") else "mm1_jax/commands"
    return ROOT / folder / f"{tool}.py"


@pytest.mark.parametrize("tool", TOOLS)
def test_every_tool_finds_a_module_of_the_current_folder(own_module, capsys, tool):
    spec = importlib.util.spec_from_file_location(tool, _code(tool))
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
        for path in (*(ROOT / "tools").glob("*.py"), *(ROOT / "mm1_jax/commands").glob("*.py"))
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
        ("experiments.mine", "no such module is in {experiments}; give the command in the folder"),
    ],
)
def test_a_missing_module_is_explained(own_module, name, said):
    with pytest.raises(ValueError) as error:
        import_module(name, "--module")
    experiments = ROOT / "experiments"
    assert said.format(cwd=os.getcwd(), experiments=experiments) in str(error.value)


OWN = """
from experiments import pretrain
def named_configs():
    return {NAME: own}
def own():
    '''A run of my own.'''
    return pretrain.mm1_tiny().set(model=None)
"""


def _own_experiments(folder, *, has_init=False, **names):
    """Writes a package `experiments` of a user: modules by name, each with one config."""
    (folder / "experiments").mkdir()
    if has_init:
        (folder / "experiments" / "__init__.py").write_text("is_own = True\n")
    for module, name in names.items():
        text = OWN.replace("NAME", repr(name))
        (folder / "experiments" / f"{module}.py").write_text(text)


def _python(folder, *arguments):
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("has_init", [False, True])
def test_user_experiments_are_found_beside_the_shipped_ones(tmp_path, has_init):
    _own_experiments(tmp_path, has_init=has_init, mine="my_run", ablations="my_ablation")
    # A script in a user's folder has no configs and is not imported.
    (tmp_path / "experiments" / "plot.py").write_text(
        "from experiments.mine import named_configs\nraise SystemExit('it runs')\n"
    )
    listed = _python(tmp_path, "-m", "mm1_jax", "launch", "--list")
    assert listed.returncode == 0
    lines = {line.split()[0]: line for line in listed.stdout.splitlines()}
    assert lines["my_run"].endswith("  A run of my own. (./experiments/mine.py)")
    assert "mm1_tiny" in lines and "experiments" not in lines["mm1_tiny"]
    # A user's module replaces the shipped module with the same name.
    assert "my_ablation" in lines and "mm1_1b_vit_h14_336" not in lines
    assert listed.stderr == (
        "note: ./experiments has ablations, read in place of the shipped module of that name\n"
    )


def test_a_user_module_that_breaks_a_shipped_import_is_explained(tmp_path):
    _own_experiments(tmp_path)
    (tmp_path / "experiments" / "pretrain.py").write_text("")
    found = _python(tmp_path, "-m", "mm1_jax.launch", "--config=mm1_3b_chat")
    assert found.returncode == 2 and "Traceback" not in found.stderr
    assert "experiments.ablations cannot be imported" in found.stderr
    assert "./experiments has pretrain, read in place" in found.stderr


def test_a_config_name_in_both_a_user_and_a_shipped_module_is_an_error(tmp_path):
    _own_experiments(tmp_path, mine="mm1_tiny")
    found = _python(tmp_path, "-m", "mm1_jax.launch", "--config=mm1_tiny", "--print_config")
    assert found.returncode == 2
    assert "'mm1_tiny', in experiments.mine and experiments.pretrain: rename one" in found.stderr


def test_names_in_files_are_those_of_the_imported_modules():
    imported = {name: each.description for name, each in named_configs().items()}
    assert described_configs() == imported
    files = {Path(sys.modules[each.module].__file__) for each in named_configs().values()}
    assert all(read_names(file) is not None for file in files)


NAMING = {
    "dict": "return {'a': a, 'b': partial(b, 1)}",
    "tuple": "configs = (a, b)\n    return {make.__name__: make for make in configs}",
    "functools": "return {'a': a, 'b': functools.partial(b, 1)}",
    # Modules with one of these are imported.
    "computed": "return {f'{x}': a for x in 'ab'}",
    "foreign": "return {'a': a, 'b': other.b}",
    "changed": "configs = {'a': a}\n    configs['b'] = a\n    return configs",
    "chosen": "return {make.__name__: make for make in (a, b) if make is a}",
    "imported": "return {'a': a, 'b': elsewhere}",
    "branched": "configs = (a, b)\n    if a:\n        configs = (a,)\n"
    "    return {make.__name__: make for make in configs}",
    "extended": "configs = (a,)\n    configs += (b,)\n"
    "    return {make.__name__: make for make in configs}",
    "renamed": "a = b\n    return {'a': a, 'b': b}",
    "listed": "configs = [a]\n    configs.append(b)\n"
    "    return {make.__name__: make for make in configs}",
}


@pytest.mark.parametrize("form", NAMING)
def test_names_are_read_from_plain_forms_alone(tmp_path, form):
    file = tmp_path / "module.py"
    file.write_text(
        "def a():\n    '''First.\n\n    More.\n    '''\ndef b(x): pass\n"
        f"def named_configs():\n    {NAMING[form]}\n"
    )
    is_plain = form in ("dict", "tuple", "functools")
    assert read_names(file) == ({"a": "First.", "b": ""} if is_plain else None)


@pytest.mark.parametrize("text", ["def named_configs(:", "named_configs = make", "x = 1"])
def test_names_of_other_files_are_not_read(tmp_path, text):
    (tmp_path / "module.py").write_text(text)
    assert read_names(tmp_path / "module.py") is None
    assert read_names(tmp_path / "missing.py") is None


def test_the_list_imports_nothing_heavy_and_has_new_files(tmp_path):
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "mine.py").write_text(
        "import a_module_that_is_missing\n"
        "def my_run():\n    '''A run of my own.'''\n"
        "def named_configs():\n    return {'my_run': my_run}\n"
    )
    code = (
        "import sys\nfrom mm1_jax.launch.__main__ import main\n"
        "assert main(['--list']) == 0\n"
        "assert not {'jax', 'flax', 'grain', 'orbax'} & sys.modules.keys()"
    )
    listed = _python(tmp_path, "-c", code)
    assert listed.returncode == 0, listed.stderr
    assert "my_run" in listed.stdout and "A run of my own. (./experiments/mine.py)" in listed.stdout


@pytest.mark.parametrize("first", ["mm1_jax", "experiments"])
def test_another_package_called_experiments_keeps_its_modules(tmp_path, first):
    """A program still finds its own `experiments` package, before and after it imports mm1_jax."""
    _own_experiments(tmp_path, has_init=True)
    (tmp_path / "experiments" / "mine.py").write_text("x = 1\n")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\nimport {first}\n"
        "import mm1_jax, experiments, experiments.mine\n"
        "from mm1_jax.launch.named_configs import import_module\n"
        "print(experiments.is_own, import_module('experiments.filters', '').__name__)"
    )
    assert _python(ROOT.parent, "-c", code).stdout == "True experiments.filters\n"


def test_spawned_processes_find_user_experiments(tmp_path):
    """Data workers unpickle functions of a user's module by name."""
    _own_experiments(tmp_path, has_init=True)
    (tmp_path / "experiments" / "mine.py").write_text(
        "from experiments import filters\ndef make():\n    return filters.no_filters()\n"
    )
    (tmp_path / "start.py").write_text(
        "import multiprocessing\n"
        "from concurrent.futures import ProcessPoolExecutor\n"
        "from mm1_jax.launch.named_configs import NamedConfig\n"
        "if __name__ == '__main__':\n"
        "    from experiments.mine import make\n"
        "    with ProcessPoolExecutor(1, multiprocessing.get_context('spawn')) as pool:\n"
        "        print(pool.submit(repr, NamedConfig('x', 'y', make)).result())\n"
    )
    started = _python(tmp_path, "start.py")
    assert started.stdout.startswith("NamedConfig(name='x'"), started.stderr


def test_a_module_that_exits_never_makes_a_command_exit_with_0(own_module):
    Path("ending.py").write_text("import sys\nsys.exit(0)\n")
    with pytest.raises(ValueError, match="--module=ending: its import calls sys.exit"):
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
    "arguments": (lambda size: mm1_tiny(), "needs arguments; bind them with functools.partial"),
    "config": (mm1_tiny(), "is a config, expected a function that makes one"),
    "text": ("mm1_tiny", "is 'mm1_tiny', expected a function"),
    "evals": (
        _with("evals", list(mm1_tiny().evals.values())),
        "evals is a list, expected a dict from strings to configs of Evaluator",
    ),
    "model_class": (
        _with("model", MM1),
        "model is the class MM1, expected a config; write MM1",
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
        "trainer.optimizer.frozen='vision_encoder': expected a tuple of strings",
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


def test_a_launch_of_an_invalid_function_exits_with_2(module, capsys):
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
