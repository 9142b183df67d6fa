"""Every named experiment builds, and its resolved config is the golden text.

Regenerate the texts after a change that is meant: `MM1_UPDATE_GOLDEN=1 pytest tests/experiments`.
"""

import os
from pathlib import Path

import pytest

from mm1_jax.experiment import Experiment
from mm1_jax.launch.named_configs import named_configs

GOLDEN = Path(__file__).parent.parent.parent / "experiments" / "golden"
NAMES = sorted(named_configs())


@pytest.mark.parametrize("name", NAMES)
def test_resolved_config_is_the_golden_text(name):
    text = Experiment.resolve(named_configs()[name]()).debug_string() + "\n"
    path = GOLDEN / f"{name}.txt"
    if os.environ.get("MM1_UPDATE_GOLDEN"):
        path.write_text(text)
    assert path.exists(), f"{path} is missing; make it with MM1_UPDATE_GOLDEN=1"
    assert text == path.read_text(), f"{name} changed; if meant, run with MM1_UPDATE_GOLDEN=1"


def test_no_golden_text_is_left_over():
    assert sorted(path.stem for path in GOLDEN.glob("*.txt")) == NAMES
