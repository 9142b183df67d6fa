"""Finds the package `experiments`, which may be in several folders: the user's and the shipped one.

These are the folders `experiments` on Python's path, up to the one shipped with this package.
`import experiments.mine` imports the first `mine` in them. So a user's module replaces the shipped
module of the same name, and user modules can import shipped ones (`from experiments import
pretrain`). A user's folder needs no `__init__.py`. Processes that a run starts have the same path
and find the same modules.
"""

import importlib.util
import os
import sys
from importlib.machinery import ModuleSpec

EXPERIMENTS = "experiments"
SHIPPED = os.path.join(os.path.dirname(os.path.dirname(os.path.realpath(__file__))), EXPERIMENTS)


def experiment_folders() -> list[str]:
    """Returns the absolute folders of the package; the shipped one is the last."""
    folders: list[str] = []
    for entry in sys.path:
        folder = os.path.join(entry, EXPERIMENTS)
        if not os.path.isdir(folder):
            continue
        folder = os.path.realpath(folder)
        if folder == SHIPPED:
            break
        if folder not in folders:
            folders.append(folder)
    return [*folders, SHIPPED]


class ExperimentsFinder:
    """Finds the package in all of its folders; runs before the finders of Python."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if name != EXPERIMENTS:
            return None
        folders = experiment_folders()
        files = [os.path.join(folder, "__init__.py") for folder in folders]
        file = next((each for each in files if os.path.exists(each)), None)
        if file is None:
            return None
        return importlib.util.spec_from_file_location(
            name, file, submodule_search_locations=folders
        )


def install() -> None:
    """Adds the finder to those of the import system, once."""
    if not any(isinstance(each, ExperimentsFinder) for each in sys.meta_path):
        sys.meta_path.insert(0, ExperimentsFinder())
