"""The command line of conversions: its output, and the state that a kill leaves."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from foreign_models import save

from mm1_jax.checkpoints.trained_model import load_model
from mm1_jax.checkpoints.weights_folder import StoredParams
from mm1_jax.commands.convert_checkpoint import main

ROOT = Path(__file__).parent.parent.parent

# Ends as if killed, without cleanup, when half of the tensors are written.
KILLED = """
import os, sys
from pathlib import Path
from mm1_jax.interop.importer import import_checkpoint
names = []
def watch(name, size):
    names.append(name)
    if len(names) == 20:
        os._exit(9)
import_checkpoint(Path(sys.argv[1]), Path(sys.argv[2]), watch=watch)
"""


@pytest.fixture
def source(tmp_path):
    save("llama", tmp_path / "hf")
    return tmp_path / "hf"


def test_a_killed_conversion_leaves_nothing_that_looks_complete(source, tmp_path):
    output = tmp_path / "weights"
    command = (sys.executable, "-c", KILLED, str(source), str(output))
    killed = subprocess.run(command, cwd=ROOT, env={**os.environ, "JAX_PLATFORMS": "cpu"})
    assert killed.returncode == 9
    left = [path.name for path in tmp_path.iterdir() if path.name != "hf"]
    assert len(left) == 1 and left[0].startswith("weights.partial-")
    assert not (tmp_path / left[0] / "weights.json").exists()
    assert main(["import", f"--source={source}", f"--output={output}", "--skip_comparison"]) == 0
    assert (output / "weights.json").exists()
    # The remains of the killed conversion are gone.
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf", "weights"]


def test_a_conversion_reports_the_comparison_and_its_duration(source, tmp_path, capsys):
    assert main(["import", f"--source={source}", f"--output={tmp_path / 'weights'}"]) == 0
    output = capsys.readouterr().out
    assert "Good. logits of random tokens: largest difference" in output
    assert "the bound is 2e-05" in output and "GiB of memory at most" in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["import", "--source=nowhere", "--output=x"], "nowhere: no such file or folder"),
        (["export", "--checkpoint=nowhere", "--output=x"], "nowhere: neither weights.json nor"),
    ],
)
def test_missing_paths_are_named(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


def test_an_existing_output_is_not_overwritten(source, tmp_path, capsys):
    (tmp_path / "weights").mkdir()
    assert main(["import", f"--source={source}", f"--output={tmp_path / 'weights'}"]) == 2
    assert "already exists" in capsys.readouterr().err


def test_the_comparison_keeps_its_memory_limit_and_reports_omissions(source, tmp_path, capsys):
    # The whole decoder takes 0.27 MB, and two of its four layers 0.16 MB.
    for mib, message in (
        (0.2, "after 2 of 4 layers"),
        (0.01, "Logits were not compared: it needs"),
    ):
        output = tmp_path / str(mib)
        memory = f"--comparison_memory={mib / 1024}"
        assert main(["import", f"--source={source}", f"--output={output}", memory]) == 0
        assert message in capsys.readouterr().out
        assert message.partition(":")[0].lower() in (output / "weights.json").read_text().lower()


@pytest.mark.parametrize("form", ["auto", "source", "llava", "mm1"])
def test_a_llava_is_exported_in_the_requested_format(form, tmp_path, capsys):
    save("llava", tmp_path / "hf")
    weights, output = tmp_path / "weights", tmp_path / "output"
    arguments = ["--skip_comparison", f"--output={weights}"]
    assert main(["import", f"--source={tmp_path / 'hf'}", *arguments]) == 0
    arguments = ["--skip_comparison", f"--format={form}", f"--output={output}"]
    assert main(["export", f"--checkpoint={weights}", *arguments]) == 0
    expected = "mm1" if form == "mm1" else "llava"
    assert f"parameters as a {expected}" in capsys.readouterr().out
    config = json.loads((output / "config.json").read_text())
    assert config["model_type"] == expected
    # The source's LLaVA reads an inner layer of its tower, whose other layers are kept, too.
    layers = {"auto": -2, "source": -2, "llava": -1, "mm1": None}
    assert config.get("vision_feature_layer") == layers[form]


def test_a_format_that_does_not_fit_the_weights_is_an_error(source, tmp_path, capsys):
    weights = tmp_path / "weights"
    assert main(["import", f"--source={source}", f"--output={weights}", "--skip_comparison"]) == 0
    arguments = [f"--checkpoint={weights}", f"--output={tmp_path / 'x'}", "--format=llava"]
    assert main(["export", *arguments]) == 2
    assert "this is a single part" in capsys.readouterr().err


def test_a_run_with_adapters_is_exported_merged_alone_and_without_them(
    adapted_run, tmp_path, capsys
):
    folder, models, cfg = adapted_run
    load_model(folder, cfg)
    for form in ("merge", "base", "peft"):
        arguments = [f"--checkpoint={folder}", f"--output={tmp_path / form}", f"--adapters={form}"]
        assert main(["export", *arguments, "--base_name=mine"]) == 0
        assert "Good. logits of random tokens and images" in capsys.readouterr().out
    config = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert config["modules_to_save"] == ["connector"]
    assert config["base_model_name_or_path"] == "mine"
    sizes = {x: (tmp_path / x / "model.safetensors").stat().st_size for x in ("merge", "base")}
    assert sizes["merge"] == sizes["base"]
    weights = tmp_path / "weights"
    arguments = [f"--source={tmp_path / 'peft'}", f"--base={folder}", f"--output={weights}"]
    assert main(["import", arguments[0], arguments[2]]) == 2
    assert "holds adapters of PEFT" in capsys.readouterr().err
    assert main(["import", *arguments]) == 0
    assert "decoder/stack/layer/attention/query, rank 2, alpha 16" in capsys.readouterr().out
    read = StoredParams(weights).read("decoder/stack/layer/attention/query/lora/b")
    own = models[3].decoder.stack.layer.attention.query.lora.b[...]
    assert (read == own).all()


def test_adapters_of_a_run_without_any_are_an_error(run, tmp_path, capsys):
    arguments = [f"--checkpoint={run[0]}", f"--output={tmp_path / 'x'}", "--adapters=peft"]
    assert main(["export", *arguments]) == 2
    assert f"--adapters=peft: {run[0]} has no adapters" in capsys.readouterr().err
