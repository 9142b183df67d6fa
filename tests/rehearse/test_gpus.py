import importlib.util
import json

import pytest

from mm1_jax.rehearse.gpus import environment, topology_options
from mm1_jax.rehearse.topologies import parse_topology

H100 = parse_topology("h100:8")


@pytest.fixture
def find_spec(monkeypatch):
    """Replaces the specs of installed packages, by name."""
    specs = {}
    monkeypatch.setattr(importlib.util, "find_spec", specs.get)
    return specs


def test_without_the_plugin_an_error_names_the_extra(find_spec):
    assert environment() == {}
    with pytest.raises(ValueError, match=r"mm1_jax\[rehearse-cuda\]"):
        topology_options(H100)


def test_compiler_tools_are_found_beside_the_plugin(find_spec, tmp_path):
    (tmp_path / "cu13").mkdir()
    find_spec["nvidia"] = type("Spec", (), {"submodule_search_locations": [str(tmp_path)]})
    assert f"--xla_gpu_cuda_data_dir={tmp_path / 'cu13'} " in environment()["XLA_FLAGS"]
    find_spec["jax_plugins.xla_cuda13"] = object()
    assert topology_options(H100)["topology"] == "1x1x8"


def test_a_rehearsal_runs_for_gpus(run_afresh, tmp_path):
    file = tmp_path / "report.json"
    result = run_afresh(
        "-m",
        "mm1_jax.rehearse",
        "--module=small_experiment",
        "--config=small",
        "--topology=h100:4",
        f"--json={file}",
        compiler="jax-cuda13-plugin",
    )
    assert result.returncode == 0, result.stderr
    report = json.loads(file.read_text())
    assert report["mesh"] == {"fsdp": 4} and report["memory"]["fits"]
    assert 1 < report["flops"]["ratio"] < 2
    assert {"all-gather", "reduce-scatter"} <= set(report["collectives"])
    assert report["step"]["kernel"] > 0 and not report["warnings"]
