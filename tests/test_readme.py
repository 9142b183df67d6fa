"""The README is true: its tree lists every folder, and nothing else."""

import re
import subprocess
from pathlib import Path, PurePath

ROOT = Path(__file__).parent.parent


def _tree() -> set[str]:
    """Returns the folders in the README's tree."""
    text = (ROOT / "README.md").read_text()
    block = re.search(r"<!-- tree -->\n+```text\n(.*?)```", text, re.DOTALL)
    assert block, "README.md has no tree"
    paths, folders = set(), []
    for line in block.group(1).splitlines():
        indent = (len(line) - len(line.lstrip())) // 2
        name, description = line.strip().split(maxsplit=1)
        assert name.endswith("/") and description, line
        folders = [*folders[:indent], name]
        paths.add("".join(folders))
    return paths


def test_the_tree_in_the_readme_matches_the_folders():
    files = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    folders = {
        f"{folder}/" for file in files for folder in PurePath(file).parents if str(folder) != "."
    }
    # The README omits dot folders, and folders inside of tests and of data.
    unlisted = (".", "tests/", "experiments/", "mm1_jax/data/assets/")
    listed = {x for x in folders if not x.startswith(unlisted)} | {"tests/", "experiments/"}
    assert _tree() == listed
