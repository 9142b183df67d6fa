"""Functions that do not make the config of an experiment, each told in a sentence."""

import sys
import types

import pytest

from experiments.pretrain import mm1_tiny
from mm1_jax.launch import main
from mm1_jax.models.connectors.average_pooling import AveragePooling
from mm1_jax.models.mm1 import MM1
from mm1_jax.run_folder import Launch


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
def test_an_experiment_that_is_none_is_one_sentence(module, name):
    with pytest.raises(ValueError) as error:
        Launch(name, module.__name__).resolved_config()
    assert WRONG[name][1] in str(error.value) and "\n" not in str(error.value)


def test_a_launch_ends_with_2(module, capsys):
    options = ["--module=wrong_experiments", "--config=none", "--print_config"]
    assert main(options) == 2
    assert capsys.readouterr().err.startswith("error: --config=none: wrong_experiments.named_conf")


def test_named_configs_has_to_return_a_dict(module):
    module.named_configs = lambda: [mm1_tiny]
    with pytest.raises(ValueError, match="expected a dict from names to functions"):
        Launch("none", module.__name__).resolved_config()


def test_a_negated_field_takes_no_value(capsys):
    with pytest.raises(SystemExit) as exit:
        main(["--config=mm1_tiny", "--noconfig.trainer.checkpointer.checksums=true"])
    assert exit.value.code == 2
    assert "takes no value, it sets the field to False" in capsys.readouterr().err
