"""The README is true: its tree names every folder, and nothing else."""

import re
import subprocess
from pathlib import Path, PurePath

ROOT = Path(__file__).parent.parent
# The README omits folders with more parts, dot folders, and subfolders of these.
MOST_PARTS = 3
UNLISTED = (".", "tests/", "experiments/", "mm1_jax/data/assets/", "docs/studies/")


def _tree() -> set[str]:
    """Returns the folders in the README's tree: one per line, and its subfolders after a colon."""
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
        inside = description.rpartition(": ")[2] if ": " in description else ""
        paths |= {"".join([*folders, each]) for each in re.findall(r"\w+/", inside)}
    return paths


def test_the_tree_in_the_readme_matches_the_folders():
    files = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    folders = {
        f"{folder}/"
        for file in files
        for folder in PurePath(file).parents
        if str(folder) != "." and len(folder.parts) <= MOST_PARTS
    }
    listed = {each for each in folders if not each.startswith(UNLISTED)}
    assert _tree() == listed | {"tests/", "experiments/", "docs/studies/"}


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 200
