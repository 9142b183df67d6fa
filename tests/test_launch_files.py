"""The launch files are valid, and their commands are valid command lines of the launcher."""

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from mm1_jax.launch.__main__ import _parser
from mm1_jax.launch.config_options import split_overrides

FILES = Path(__file__).parent.parent / "launch_files"
ENVIRONMENT = {
    "PATH": os.environ["PATH"],
    "DRY_RUN": "1",
    "PROJECT": "project",
    "ZONE": "zone",
    "BUCKET": "gs://bucket",
    "REPOSITORY": "https://example.com/fork",
}


def dry_run(name: str, *arguments: str) -> str:
    command = ["bash", str(FILES / name), *arguments]
    result = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


def check_arguments(words: list[str]) -> None:
    rest, overrides = split_overrides(words)
    options = _parser().parse_args(rest)
    assert options.config and options.output_dir
    assert overrides.keys() <= {
        "trainer.checkpointer.location",
        "trainer.watchdog.abort",
    }


def launched(text: str) -> list[str]:
    """Returns the arguments of the launcher in a printed command."""
    words = shlex.split(text.split("mm1_jax.launch", 1)[1])
    return words[: words.index(">")] if ">" in words else words


def test_the_cloud_tpu_script_launches_a_valid_command():
    lines = dry_run("tpu_queued_resource.sh").splitlines()
    assert lines[0].startswith("gcloud compute tpus queued-resources create mm1-7b")
    # The command is quoted twice, as an argument of ssh.
    (command,) = (word for word in shlex.split(lines[-1]) if "mm1_jax.launch" in word)
    check_arguments(launched(command))


def test_the_slurm_script_launches_a_valid_command():
    arguments = ("--config=mm1_3b", "--output_dir=/shared/run")
    check_arguments(launched(dry_run("slurm_gpus.sh", *arguments)))


@pytest.mark.parametrize("name", ["tpu_queued_resource.sh", "slurm_gpus.sh"])
def test_scripts_are_valid_bash(name):
    subprocess.run(["bash", "-n", str(FILES / name)], check=True)


def test_the_gke_job_launches_a_valid_command():
    text = (FILES / "gke_jobset.yaml").read_text()
    assert "kind: JobSet" in text and "\t" not in text
    check_arguments(re.findall(r"^ +- (--\S+)$", text, re.MULTILINE))
    # A slice of 4x4x4 chips has 16 hosts of four chips, and one pod per host.
    assert re.search(r"topology: 4x4x4", text)
    assert set(re.findall(r"(?:parallelism|completions): (\d+)", text)) == {"16"}
