import importlib.util
import sys
from pathlib import Path

from mm1_jax.evals.predictions import pairing

_spec = importlib.util.spec_from_file_location(
    "mutations", Path(__file__).with_name("mutations.py")
)
mutations = importlib.util.module_from_spec(_spec)
# Dataclasses look up their module.
sys.modules["mutations"] = mutations
_spec.loader.exec_module(mutations)


def outcomes(folder: Path, count: int) -> list:
    return [mutations.try_file(seed, folder) for seed in range(count)]


def test_changed_files_are_refused_or_scored_by_the_rules(tmp_path):
    tried = outcomes(tmp_path, 250)
    assert [one for one in tried if one.problem] == []
    changes = {change for one in tried for change in one.changes}
    every = {*mutations.KEEPING, *mutations.CHANGING}
    assert changes == {mutation.__name__.strip("_") for mutation in every}
    assert {one.name for one in tried} == {*mutations.LAYOUTS}
    assert 100 < sum(one.was_scored for one in tried) < 200


def test_a_silent_pairing_by_order_would_be_detected(tmp_path, monkeypatch):
    monkeypatch.setattr(pairing, "_may_be_id", lambda name, records: False)
    found = {one.changes for one in outcomes(tmp_path, 250) if one.problem}
    assert ("rename_id",) in found and all(len(changes) == 1 for changes in found)
