"""The README is true: its tree lists every file, and nothing else."""

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parent.parent


def _tree() -> set[str]:
    """The paths in the README's tree: names, then a description of several words."""
    text = (ROOT / "README.md").read_text()
    block = re.search(r"<!-- tree -->\n+```text\n(.*?)```", text, re.DOTALL)
    assert block, "README.md has no tree"
    paths, folders = set(), []
    for line in block.group(1).splitlines():
        if not line.strip():
            continue
        indent = (len(line) - len(line.lstrip())) // 2
        folders = folders[:indent]
        names = [part for part in re.split(r"\s{2,}", line.strip()) if " " not in part]
        for name in names:
            if name.endswith("/"):
                folders.append(name)
            else:
                paths.add("".join(folders) + name)
    return paths


def test_the_tree_in_the_readme_is_the_tree_of_the_files():
    files = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    # Dot files, package markers, golden texts and tests (which mirror the package) go unlisted.
    listed = {
        file
        for file in files
        if not file.startswith((".", "tests/", "experiments/golden/"))
        and not file.endswith("__init__.py")
    }
    assert _tree() == listed
