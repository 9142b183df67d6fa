import importlib.util
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[2] / "tools" / "image_utilisation.py"
_spec = importlib.util.spec_from_file_location("image_utilisation_tool", TOOL)
tool = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(tool)


def test_larger_groups_use_a_larger_share_of_their_slots(capsys):
    tool.main(
        ["--images_per_row=10", "--num_steps=2", "--batch_size=64", "--group_rows", "16", "64"]
    )
    text = capsys.readouterr().out
    assert text.startswith("10 images per interleaved row, 11.")
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")][2:]
    assert [row[0] for row in rows] == ["1", "16", "64"]
    used = [float(row[3]) for row in rows]
    assert used == sorted(used) and used[-1] > 0.9
    # The number of slots that never overflows is at least the number that did not here.
    assert all(int(row[4]) >= int(row[1]) for row in rows)


def test_groups_that_do_not_divide_the_batch_are_refused(capsys):
    with pytest.raises(SystemExit):
        tool.main(["--batch_size=64", "--group_rows=5"])
    assert "--group_rows=5 must divide --batch_size=64" in capsys.readouterr().err
