"""Class names and prompt templates of zero-shot classification, from files or from open_clip.

open_clip is read as text, so it needs neither PyTorch nor torchvision to be importable.
"""

import ast
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mm1_jax.evals.predictions.files import read_file, read_text

PLACE = "{c}"
# The template without a file: a single one, which costs 3 to 5 points of ImageNet's 80.
DEFAULT_TEMPLATES = ("a photo of a {c}.",)
_METADATA = "zero_shot_metadata.py"


def read_texts(path: Path, key: str) -> list[str]:
    """Returns the lines of a text file, or the texts of a JSON list.

    Args:
        key: The name of the data set, whose list is taken from a JSON object of lists, as in
            CLIP_benchmark's `en_classnames.json`.
    """
    if path.suffix != ".json":
        texts: Any = [line.strip() for line in read_text(path).splitlines()]
        while texts and not texts[-1]:
            texts.pop()
    else:
        texts = read_file(path)
        if isinstance(texts, dict):
            if key not in texts:
                known = ", ".join(list(texts)[:10])
                raise ValueError(
                    f"{path}: no list {key!r}; it has {known}; give the data set one of these "
                    "names, or a file of one text per line"
                )
            texts = texts[key]
    if not isinstance(texts, list) or not texts or not all(isinstance(x, str) for x in texts):
        raise ValueError(f"{path}: expected one text per line, or a JSON list of texts")
    if "" in texts:
        raise ValueError(f"{path}: text {texts.index('') + 1} is empty; write a text or remove it")
    return texts


def read_templates(path: Path, key: str) -> tuple[str, ...]:
    """Returns templates with `{c}` for the class; files may also write `{}`."""
    found = []
    for number, text in enumerate(read_texts(path, key), start=1):
        template = text.replace("{}", PLACE)
        if template.count(PLACE) != 1:
            raise ValueError(
                f"{path}: template {number} is {text!r}; expected {PLACE} once, for the class name"
            )
        found.append(template)
    return tuple(found)


def read_class_names(path: Path, folders: Sequence[str], key: str) -> tuple[str, ...]:
    """Returns the name of each class folder.

    The file has the names in the order of the sorted folders, or lines `FOLDER NAME`.
    """
    lines = read_texts(path, key)
    pairs = [line.partition(" ") for line in (x.replace("\t", " ") for x in lines)]
    by_folder = {folder: name.strip() for folder, _, name in pairs}
    if folders and all(by_folder.get(folder) for folder in folders):
        return tuple(by_folder[folder] for folder in folders)
    if len(lines) != len(folders):
        raise ValueError(
            f"{path}: {len(lines)} class names for {len(folders)} classes; write one per class "
            "folder in sorted order, or lines of folder and name"
        )
    return tuple(lines)


def open_clip_prompts() -> tuple[tuple[str, ...], tuple[str, ...]] | None:
    """Returns OpenAI's class names of ImageNet and 80 templates; None without open_clip."""
    found = importlib.util.find_spec("open_clip")
    if found is None or not found.submodule_search_locations:
        return None
    path = Path(found.submodule_search_locations[0], _METADATA)
    try:
        values = _assigned(ast.parse(path.read_text(encoding="utf-8")))
        names = ast.literal_eval(values["IMAGENET_CLASSNAMES"])
        templates = [_template(each) for each in values["OPENAI_IMAGENET_TEMPLATES"].elts]
    except (OSError, SyntaxError, KeyError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{path}: not the class names and templates of open_clip_torch 2 or 3 ({error}); give "
            "files with --class_names and --templates"
        ) from error
    return tuple(names), tuple(templates)


def _assigned(module: ast.Module) -> dict[str, Any]:
    return {
        target.id: node.value
        for node in module.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }


def _template(function: Any) -> str:
    """Returns the text of `lambda c: f'a photo of a {c}.'`."""
    parts = function.body.values
    return "".join(str(x.value) if isinstance(x, ast.Constant) else PLACE for x in parts)
