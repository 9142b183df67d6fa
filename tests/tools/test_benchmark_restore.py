"""The benchmark of restores: a state of the size that was asked for comes back as it was saved."""

import importlib.util
from pathlib import Path

TOOL = Path(__file__).parents[2] / "tools" / "benchmark_restore.py"
_spec = importlib.util.spec_from_file_location("benchmark_restore", TOOL)
tool = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(tool)


def test_the_state_has_the_size_and_both_restores_are_timed(tmp_path, capsys):
    state = tool.state_of(0.02)
    leaves = [*state.params.values(), *(x for each in state.opt_state for x in each.values())]
    assert abs(sum(x.nbytes for x in leaves) / 2**30 - 0.02) < 0.001
    assert tool.main(["--gib=0.02", "--rounds=1", f"--folder={tmp_path}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines[-2:]] == ["without", "with"]
    assert list(tmp_path.iterdir()) == []
