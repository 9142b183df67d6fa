"""JAX looks for a TPU only where there may be one."""

import os
import subprocess
import sys

import pytest

from mm1_jax import platforms


@pytest.fixture
def machine(tmp_path):
    """A root folder with two PCI devices, none of which is a TPU."""
    for number, vendor in enumerate(("0x1af4", "0x8086")):
        folder = tmp_path / "sys/bus/pci/devices" / f"0000:00:0{number}.0"
        folder.mkdir(parents=True)
        (folder / "vendor").write_text(f"{vendor}\n")
    return tmp_path


def test_a_machine_without_signs_of_a_tpu_has_none(machine):
    assert not platforms.may_have_tpu(machine, {"PATH": "/bin", "JAX_PLATFORMS": ""})
    assert not platforms.may_have_tpu(machine, {"TPU_SKIP_MDS_QUERY": "1"})


def test_any_sign_of_a_tpu_counts(machine, tmp_path):
    assert platforms.may_have_tpu(machine, {"TPU_WORKER_ID": "0"})
    assert platforms.may_have_tpu(machine, {"JAX_FORCE_TPU_INIT": "1"})
    # PCI is not visible, as in some containers.
    assert platforms.may_have_tpu(tmp_path / "empty", {})
    for device in ("accel0", "vfio/0"):
        file = machine / "dev" / device
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
        assert platforms.may_have_tpu(machine, {})
        file.unlink()
    assert not platforms.may_have_tpu(machine, {})
    (machine / "sys/bus/pci/devices/0000:00:01.0/vendor").write_text("0x1ae0\n")
    assert platforms.may_have_tpu(machine, {})


@pytest.mark.parametrize("chosen", ["", "cuda"])
@pytest.mark.parametrize("libtpu", [False, True])
@pytest.mark.parametrize("plugins", [False, True])
@pytest.mark.parametrize("tpu", [False, True])
def test_the_cpu_is_chosen_only_in_place_of_an_absent_tpu(
    monkeypatch, chosen, libtpu, plugins, tpu
):
    monkeypatch.setenv("JAX_PLATFORMS", chosen)
    monkeypatch.setattr(platforms, "_has_module", lambda name: libtpu and name == "libtpu")
    monkeypatch.setattr(platforms, "_has_plugins", lambda: plugins)
    monkeypatch.setattr(platforms, "may_have_tpu", lambda root, env: tpu)
    platforms.prefer_cpu()
    is_alone = libtpu and not plugins and not tpu and not chosen
    assert os.environ["JAX_PLATFORMS"] == ("cpu" if is_alone else chosen)


def test_scripts_print_no_errors_of_libtpu():
    code = (
        "from mm1_jax.command import command, end_on_signals\nend_on_signals()\n"
        "def main(argv):\n    import jax\n    return len(jax.devices()) - 1\n"
        "raise SystemExit(command(main)([]))"
    )
    # Other tests of this process may have loaded libtpu, which sets variables.
    env = {
        name: value
        for name, value in os.environ.items()
        if name not in ("JAX_PLATFORMS", "XLA_FLAGS") and not name.startswith("TPU_")
    }
    result = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
