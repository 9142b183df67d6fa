import pytest

from mm1_jax.commands import compute_lengths, hash_batches, snapshot

CONFIG = ["--config=drawn", "--module=drawn_experiment"]


@pytest.mark.parametrize("form", ["ids", "rows"])
def test_batches_of_a_snapshot_have_the_hashes_of_its_config(tmp_path, capsys, form):
    folder = tmp_path / "snapshot"
    made = [*CONFIG, "--steps=3", f"--output={folder}", f"--form={form}"]
    assert snapshot.main(made) == 0
    assert "3 steps, 24 rows" in capsys.readouterr().out

    def hashes(*overrides):
        assert hash_batches.main([*CONFIG, "--steps=0:3", *overrides]) == 0
        lines = capsys.readouterr().out.splitlines()
        return [line for line in lines if line.startswith(("0", "1", "2"))]

    online = hashes()
    assert len(online) == 3
    assert hashes(f"--config.input.snapshot={folder}", "--hosts=2") == online


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--steps=1", "--config.input.seed=x"], "seed"),
        (["--steps=1", "--config=nothing"], "nothing"),
    ],
)
def test_a_wrong_command_is_explained(tmp_path, capsys, options, message):
    assert snapshot.main([*CONFIG, f"--output={tmp_path / 'x'}", *options]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_a_non_empty_folder_is_not_overwritten(tmp_path, capsys):
    (tmp_path / "mine").write_text("x")
    assert snapshot.main([*CONFIG, "--steps=1", f"--output={tmp_path}"]) == 2
    assert "is not empty" in capsys.readouterr().err


def test_lengths_are_reported_for_both_splits(capsys):
    assert compute_lengths.main(CONFIG) == 0
    out = capsys.readouterr().out
    assert out.startswith("train: 8 rows") and "\ntest: 8 rows" in out
