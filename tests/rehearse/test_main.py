import gzip
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments import encoders, pretrain
from mm1_jax.launch.launch import Launch
from mm1_jax.parallel.chips import GIB
from mm1_jax.rehearse import compile
from mm1_jax.rehearse.__main__ import DOES_NOT_FIT, fingerprint, main, report_key
from mm1_jax.rehearse.compile import (
    PREDICTED_WITH,
    bytes_needed,
    expected_images,
    other_versions,
)
from mm1_jax.rehearse.links import with_places
from mm1_jax.rehearse.report import (
    advice,
    program_report,
    render,
    render_table,
    repredicted,
    step_by,
)
from mm1_jax.rehearse.topologies import parse_topology

ROOT = Path(__file__).parents[2]
MODULE = "--module=small_experiment"


@pytest.fixture(autouse=True)
def _small_experiment(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent)


def _error(capsys, *argv) -> str:
    assert main(argv) == 2
    *progress, error = capsys.readouterr().err.splitlines()
    assert error.startswith("error: ") and not any("rror" in line for line in progress)
    return error


def test_help_is_fast_and_imports_nothing_heavy():
    code = (
        "import sys, mm1_jax.rehearse.__main__ as m\n"
        "try:\n    m.main(['--help'])\n"
        "finally:\n    print({'jax', 'flax', 'grain'} & set(sys.modules))"
    )
    start = time.monotonic()
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0 and time.monotonic() - start < 2
    assert result.stdout.strip().endswith("set()") and "--topology NAME" in result.stdout


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--config=mm1_tiny", "--topology=v5q:2x2x1"], "did you mean v5p:2x2x1"),
        (["--config=mm1_tinny", "--topology=v5e:2x2"], "did you mean mm1_tiny"),
        (["--config=mm1_tiny", "--topology=v5e:2x2", "--config.model.dtyp=x"], "model.dtype"),
        (["--config=mm1_tiny", "--topology=h100:16"], "h100:8 at most"),
        (["--hlo=nothing.hlo", "--topology=v5e:2x2"], "nothing.hlo"),
    ],
)
def test_wrong_command_lines_are_one_line_errors(capsys, argv, message):
    assert message in _error(capsys, *argv)


@pytest.mark.parametrize("argv", [["--topology=v5e:2x2"], ["--config=mm1_tiny"], ["--all"]])
def test_missing_arguments_are_named(capsys, argv):
    with pytest.raises(SystemExit) as error:
        main(argv)
    assert error.value.code == 2 and "needed" in capsys.readouterr().err.replace("needs", "needed")


def test_a_program_for_other_devices_is_rejected(capsys, tmp_path):
    file = tmp_path / "program.hlo"
    file.write_text(
        "HloModule m, num_partitions=8\n\nENTRY %main () -> f32[] {\n"
        "  ROOT %c = f32[] constant(0)\n}\n"
    )
    message = _error(capsys, f"--hlo={file}", "--topology=v5e:2x2")
    assert "compiled for 8 devices" in message


def test_images_are_counted_per_stream_and_at_most_their_slots():
    cfg = Launch("small", "small_experiment").resolved_config()
    # Rows are captions (full of images), interleaved and text in proportions 9:9:2.
    assert expected_images(cfg) == pytest.approx(8 * (9 * 16 + 9 * 10) / 20)
    assert expected_images(cfg, 3.5) == 28
    assert expected_images(cfg, 99.0) == 8 * 16
    cfg.input.streams[0].name = "unheard"
    with pytest.raises(ValueError, match="--images_per_row"):
        expected_images(cfg)


def test_reports_of_a_table_are_identified_by_the_compiled_config():
    cfg, topology = Launch("small", "small_experiment").resolved_config(), parse_topology("v5e:2x2")
    before = fingerprint(cfg, topology)
    cfg.model.decoder.norm.eps = 1e-3
    assert fingerprint(cfg, topology) == before
    cfg.model.decoder.num_layers = 4
    assert fingerprint(cfg, topology) != before
    reports = [{"config": "small", "topology": "v5e:2x2", "overrides": o} for o in ({}, {"a": "1"})]
    assert [report_key(each) for each in reports] == ["small on v5e:2x2", "small on v5e:2x2 a=1"]


def test_compiler_messages_on_memory_are_parsed():
    used = "Ran out of memory in memory space hbm. Used 20.50G of 15.75G hbm."
    total = "the total memory required for HLO temporaries (512.00M) exceeds available HBM"
    assert bytes_needed(used) == 20.5 * GIB
    assert bytes_needed(total) == 0.5 * GIB
    assert bytes_needed("something else") is None


def test_a_compiler_that_differs_from_the_docs_is_named(monkeypatch):
    installed = dict(PREDICTED_WITH)
    monkeypatch.setattr(compile, "version", installed.get)
    assert other_versions("libtpu") == other_versions("jax-cuda13-plugin") == []
    installed["libtpu"] = "0.0.50"
    (warning,) = other_versions("libtpu")
    assert warning.startswith("jax 0.10.2 and libtpu 0.0.50 may compile another program than jax ")
    assert "libtpu 0.0.42.1" in warning and "mm1_jax[rehearse]" in warning
    assert other_versions("jax-cuda13-plugin") == []
    installed["jax"] = "0.11.0"
    (warning,) = other_versions("jax-cuda13-plugin")
    assert "jax 0.11.0 and" in warning and "mm1_jax[rehearse-cuda]" in warning


def test_extras_and_docs_name_the_versions_of_the_predictions():
    jax, libtpu = PREDICTED_WITH["jax"], PREDICTED_WITH["libtpu"]
    extras = (ROOT / "setup.cfg").read_text()
    assert f"rehearse =\n    jax[tpu]=={jax}\n" in extras
    assert f"rehearse-cuda =\n    jax[cuda13]=={PREDICTED_WITH['jax-cuda13-plugin']}\n" in extras
    assert f"(jax {jax}, libtpu {libtpu})" in (ROOT / "docs" / "performance.md").read_text()


@pytest.fixture(scope="module")
def rehearsed(run_afresh, tmp_path_factory):
    """A rehearsal of the small experiment on four chips: report, text, progress, program."""
    folder = tmp_path_factory.mktemp("rehearsal")
    result = run_afresh(
        "-m",
        "mm1_jax.rehearse",
        MODULE,
        "--config=small",
        "--topology=v5e:2x2",
        f"--json={folder / 'report.json'}",
        f"--save_hlo={folder / 'step.hlo.gz'}",
    )
    assert result.returncode == 0, result.stderr
    report = json.loads((folder / "report.json").read_text())
    return report, result.stdout, result.stderr, folder / "step.hlo.gz"


def test_a_rehearsal_reports_memory_flops_collectives_and_time(rehearsed):
    report, text, progress, _ = rehearsed
    assert text.strip() == render(report).strip()
    assert report["mesh"] == {"fsdp": 4}
    memory = report["memory"]
    assert memory["fits"] and memory["arguments"] > 0 and 0 < memory["free"] < 1
    # Nothing is recomputed, but slots without an image and the products of routing are executed.
    assert 1 < report["flops"]["ratio"] < 1.6
    assert "all-gather" in report["collectives"]
    step = report["step"]
    parts = sum(step[name] for name in ("matrix", "vector", "kernel", "exposed"))
    assert step["total"] == pytest.approx(parts) and report["mfu"] > 0
    assert "compiling" in progress
    assert "fits:" in text and "predicted step" in text and "libtpu" in text
    assert "warning: " not in text


def test_a_saved_program_gives_the_same_prediction(rehearsed, capsys):
    report, _, _, program = rehearsed
    model = report["flops"]["model"]
    file = program.with_name("again.json")
    arguments = [f"--hlo={program}", "--topology=v5e:2x2", f"--json={file}"]
    assert main([*arguments, f"--model_flops={model}"]) == 0
    again = json.loads(file.read_text())
    for part in ("step", "collectives", "mfu", "alternatives", "predictor"):
        assert again[part] == report[part]
    assert again["flops"]["ratio"] == report["flops"]["ratio"]
    plain = program.with_suffix("")
    plain.write_bytes(gzip.decompress(program.read_bytes()))
    assert main([f"--hlo={plain}", "--topology=v5e:2x2"]) == 0
    assert "predicted step" in capsys.readouterr().out


def test_an_update_replaces_the_prediction_and_keeps_the_rest(rehearsed, tmp_path):
    report, _, _, program = rehearsed
    old = {k: v for k, v in report.items() if k not in ("predictor", "alternatives")}
    old["step"] = {**report["step"], "total": 7.0}
    other = {**report, "topology": "v5e:4x4"}
    table = tmp_path / "table.json"
    table.write_text(json.dumps({"reports": [other, old]}))
    arguments = [f"--hlo={program}", MODULE, "--config=small", "--topology=v5e:2x2"]
    assert main([*arguments, f"--update={table}"]) == 0
    kept, new = json.loads(table.read_text())["reports"]
    assert kept == other and new == {**report, "earlier": {"1": 7.0}}


def test_reports_have_the_steps_of_all_versions_that_were_asked(rehearsed):
    report = rehearsed[0]
    again = repredicted(report, report)
    assert again == report and step_by(again, 1) is None
    new = repredicted({**report, "predictor": 1}, {**report, "step": {"total": 1e3}})
    assert new["earlier"] == {"1": report["step"]["total"]}
    assert [step_by(new, version) for version in (1, 2)] == [report["step"]["total"], 1e3]
    line = render_table([{**report, "earlier": {"1": 7.0}}]).splitlines()[-1]
    assert " 7.00 " in line and f" {report['step']['total']:.2f} " in line
    with pytest.raises(ValueError, match="another program"):
        repredicted({**report, "flops": {"executed": 1.0}}, report)


def test_what_cannot_be_updated_is_an_error(capsys, tmp_path):
    file = tmp_path / "report.json"
    arguments = ["--hlo=step.hlo", MODULE, "--config=small", "--topology=v5e:2x2"]
    report = {"config": "small", "topology": "v5e:2x2", "fingerprint": "0"}
    for wrong, message in (
        (report, "another config"),
        ({**report, "topology": "v5e:4x4"}, "no report of small on v5e:2x2"),
        ({"reports": []}, "no report of small on v5e:2x2"),
    ):
        file.write_text(json.dumps(wrong))
        assert message in _error(capsys, *arguments, f"--update={file}")


def test_an_update_needs_a_program_and_a_config(capsys):
    with pytest.raises(SystemExit):
        main(["--topology=v5e:2x2", "--config=mm1_tiny", "--update=x.json"])
    assert "--update=FILE needs --hlo=FILE" in capsys.readouterr().err


def test_a_program_without_places_gives_its_groups_all_links(programs):
    topology = parse_topology("v5e:2x2")
    text = (programs / "collectives.hlo").read_text()
    bare = program_report(text, topology, None)
    assert "every group of them has the links of all axes" in bare["warnings"][0]
    placed = with_places(text, [(0, 0, 0), (0, 1, 0), (1, 0, 0), (1, 1, 0)])
    whole = program_report(placed, topology, None)
    assert whole["warnings"] == []
    assert bare["step"]["total"] == whole["alternatives"]["all groups have all links"]
    # On two axes of two, each device sends one way.
    assert whole["step"]["transfer"] == pytest.approx(2 * bare["step"]["transfer"], rel=0.01)


def test_a_program_that_does_not_fit_reports_the_excess_and_advice(run_afresh, tmp_path):
    file = tmp_path / "report.json"
    result = run_afresh(
        "-m",
        "mm1_jax.rehearse",
        MODULE,
        "--config=too_large",
        "--topology=v5e:2x2",
        f"--json={file}",
    )
    assert result.returncode == DOES_NOT_FIT, result.stderr
    assert "DOES NOT FIT by" in result.stdout and "of 15.75 GiB" in result.stdout
    assert "--config.trainer.parallelism.fsdp=-1" in result.stdout
    report = json.loads(file.read_text())
    assert not report["memory"]["fits"] and report["memory"]["total"] > report["memory"]["hbm"]
    assert "does not fit" in render_table([report])


@pytest.mark.parametrize(
    ("chosen", "fields"),
    [
        ({}, []),
        ({"decoder_saved_names": "('query',)"}, ["decoder_saved_names=()"]),
        (
            {"decoder_remat": "none", "vision_encoder_saved_names": "('query',)"},
            ["decoder_remat=FULL", "vision_encoder_saved_names=()"],
        ),
    ],
)
def test_advice_is_to_save_less_if_something_is_saved(chosen, fields):
    cfg = pretrain.mm1_tiny()
    lines = advice(cfg, {"mesh": {"fsdp": 4}, "parallelism": chosen})
    kept = [line for line in lines if line.startswith("save less")]
    assert kept == [
        f"save less for the backward pass: '--config.trainer.parallelism.{field}'"
        for field in fields
    ]


def test_advice_is_given_for_towers_of_a_clip():
    chosen = {"text_encoder_saved_names": "('query',)"}
    lines = advice(encoders.clip_vit_l14(), {"mesh": {"fsdp": 4}, "parallelism": chosen})
    assert any("text_encoder_saved_names=()" in line for line in lines)


def test_a_table_is_resumed_and_keeps_errors(rehearsed, tmp_path, capsys):
    """Only the pair that is missing in the file is rehearsed, in a separate process."""
    file = tmp_path / "table.json"
    file.write_text(json.dumps({"reports": [rehearsed[0]]}))
    arguments = ["--all", MODULE, "--configs=small", f"--json={file}"]
    assert main([*arguments, "--topologies=v5e:2x2"]) == 0
    captured = capsys.readouterr()
    assert "small on" not in captured.err and "small" in captured.out and "MFU" in captured.out
    assert main([*arguments, "--topologies=v5e:2x2,v5p:3x3x3"]) == 1
    captured = capsys.readouterr()
    assert "[2/2] small on v5p:3x3x3" in captured.err and "error: " in captured.out
    assert len(json.loads(file.read_text())["reports"]) == 2
