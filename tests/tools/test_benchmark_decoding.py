import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("transformers")

ROOT = Path(__file__).parents[2]


def test_both_decoders_agree_and_all_figures_are_reported(tmp_path):
    options = ("--size=9m", "--batch_sizes=2", "--prompt_length=8", "--new_tokens=4")
    done = subprocess.run(
        [
            *(sys.executable, ROOT / "tools" / "benchmark_decoding.py", *options),
            *("--repeats=1", "--threads=1", f"--json={tmp_path / 'figures.json'}"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (figures,) = json.loads((tmp_path / "figures.json").read_text())
    # Logits within rounding of each other may be ordered differently.
    assert len(figures["differences"]) <= 1
    assert all(one["gap"] < 1e-4 for one in figures["differences"])
    for name in ("ours", "transformers"):
        for key in ("prefill_seconds", "whole_tokens_per_second", "cpu_seconds"):
            assert figures[name][key] > 0
    assert "speed-up" in done.stdout
