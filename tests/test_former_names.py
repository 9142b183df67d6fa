"""User code still finds modules that have moved."""

import importlib
import sys
from pathlib import Path

import pytest

import mm1_jax
from mm1_jax.former_names import MOVED


@pytest.mark.parametrize("former", ["mm1_jax.data.tokenizer", "mm1_jax.distributed"])
def test_a_former_name_imports_the_present_module(former, monkeypatch):
    monkeypatch.delitem(sys.modules, former, raising=False)
    present = importlib.import_module(MOVED[former])
    spec = present.__spec__
    with pytest.warns(DeprecationWarning, match=f"{former} has moved to {MOVED[former]}"):
        assert importlib.import_module(former) is present
    assert present.__spec__ is spec and present.__name__ == MOVED[former]


def test_an_unknown_name_is_not_found():
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("mm1_jax.checkpoints_of_old")


@pytest.mark.parametrize(("former", "present"), MOVED.items())
def test_present_modules_exist_and_former_ones_do_not(former, present):
    def file(name: str) -> Path:
        return Path(mm1_jax.__file__).parents[1] / f"{name.replace('.', '/')}.py"

    assert file(present).is_file() and not file(former).exists()
