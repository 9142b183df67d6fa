"""Writes the defaults of open_clip's config classes, read from a wheel without importing it.

pip download --no-deps open_clip_torch
python tests/interop/make_open_clip_defaults.py open_clip_torch-3.3.0-py3-none-any.whl
"""

import ast
import json
import sys
import zipfile
from pathlib import Path

TARGET = Path(__file__).parent / "open_clip_defaults.json"
CLASSES = {
    "open_clip/model.py": ("CLIPVisionCfg", "CLIPTextCfg", "CLIP", "CustomTextCLIP"),
    "open_clip/coca_model.py": ("CoCa",),
    "open_clip/transform.py": ("PreprocessCfg",),
}


def value(node: ast.expr | None):
    """Returns the value of a literal, and the source code of any other default."""
    try:
        return None if node is None else ast.literal_eval(node)
    except ValueError:
        return {"source": ast.unparse(node)}


def fields(klass: ast.ClassDef) -> dict:
    """Returns defaults of a dataclass's fields or a constructor's arguments; null if required."""
    for node in klass.body:
        if isinstance(node, ast.FunctionDef) and node.name == "__init__":
            names = [argument.arg for argument in node.args.args[1:]]
            defaults = [None] * (len(names) - len(node.args.defaults)) + node.args.defaults
            return {name: value(default) for name, default in zip(names, defaults, strict=True)}
    return {n.target.id: value(n.value) for n in klass.body if isinstance(n, ast.AnnAssign)}


def main(wheel: Path) -> None:
    result = {"from": wheel.name}
    with zipfile.ZipFile(wheel) as archive:
        for path, names in CLASSES.items():
            for node in ast.parse(archive.read(path)).body:
                if isinstance(node, ast.ClassDef) and node.name in names:
                    result[node.name] = fields(node)
        constants = {
            node.targets[0].id: value(node.value)
            for node in ast.parse(archive.read("open_clip/constants.py")).body
            if isinstance(node, ast.Assign)
        }
    result["constants"] = {k: v for k, v in constants.items() if k.startswith("OPENAI_")}
    TARGET.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
