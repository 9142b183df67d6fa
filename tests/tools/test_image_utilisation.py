import importlib.util
import json
import re
from pathlib import Path

import numpy as np
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


def _lengths_file(tmp_path):
    """Conversations of a picture in five views of 144 positions and some text; a tenth is text."""
    rng = np.random.default_rng(0)
    pictures = 720 + np.clip(rng.lognormal(4.3, 0.9, 1800), 20, 900).astype(int)
    texts = np.minimum(rng.lognormal(5.6, 0.8, 200), 2000).astype(int) + 1
    lengths = [[n, 5] for n in pictures.tolist()] + [[n, 0] for n in texts.tolist()]
    order = rng.permutation(len(lengths))
    path = tmp_path / "lengths.json"
    path.write_text(json.dumps({"lengths": [lengths[i] for i in order]}))
    return path


def _measured(capsys, path, length):
    options = [f"--max_sequence_length={length}", f"--max_images={length // 144}"]
    options += ["--num_steps=4", "--batch_size=64", "--group_rows", "64", "--num_bins=64"]
    tool.main([f"--lengths={path}", *options])
    text = capsys.readouterr().out
    fill, bound = re.search(r"filled: ([\d.]+); no packing fills more than ([\d.]+)", text).groups()
    return float(fill), float(bound), re.findall(r"\| 64 \| (8|64) \| ([\d.]+)%", text)


def test_rows_of_tiled_pictures_must_be_long(tmp_path, capsys):
    path = _lengths_file(tmp_path)
    fill, bound, _ = _measured(capsys, path, 2048)
    assert fill <= bound < 0.85
    fill, bound, balance = _measured(capsys, path, 4096)
    assert 0.95 <= fill <= bound
    assert [devices for devices, _ in balance] == ["8", "64"]
    assert all(float(share) < 5 for _, share in balance)


def test_a_file_without_lengths_is_refused(tmp_path, capsys):
    path = tmp_path / "other.json"
    path.write_text("{}")
    assert tool.main([f"--lengths={path}"]) == 2
    assert 'expected {"lengths": [[positions, images], ...]}' in capsys.readouterr().err
