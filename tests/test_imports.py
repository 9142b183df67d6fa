"""Imports point in the allowed direction, and light modules stay light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# Part -> the parts of the project that it may import; a part may always import itself.
ALLOWED = {
    "former_names": set(),
    "experiment_folders": set(),
    "field_types": set(),
    "config": {"field_types"},
    "class_choice": {"config"},
    "overrides": {"config", "class_choice"},
    "stored_config": {"config", "former_names", "overrides"},
    "config_file": {"config", "class_choice", "stored_config"},
    "storage": set(),
    "batch": set(),
    "image_buffer": set(),
    "host_memory": set(),
    "platforms": set(),
    "command": {"platforms"},
    "flags": {"storage"},
    "parallel": {"config", "batch"},
    # Finds the processes of a run before any of them imports jax.
    "multihost": set(),
    "data": {"config", "storage", "batch", "image_buffer"},
    "layers": {"config", "parallel"},
    "models": {"config", "batch", "image_buffer", "parallel", "layers"},
    "decoding": {"config", "batch", "parallel", "layers", "models"},
    "checkpoints": {
        *("config", "stored_config", "storage", "parallel", "multihost", "models"),
        # A checkpoint stores a TrainState, and knows which of its parameters are adapters.
        *("layers.lora", "layers.parameter_paths", "train.train_state"),
    },
    "train": {
        *("config", "stored_config", "storage", "batch", "image_buffer", "host_memory"),
        *("parallel", "multihost"),
        *("layers.module", "layers.parameter_paths", "models", "checkpoints", "evals.evaluator"),
    },
    "evals": {
        *("config", "storage", "batch", "parallel", "multihost", "data", "models", "decoding"),
        # The runner and the adapters of other harnesses load the model of a run; answers are
        # stored with the config of the evaluation.
        *("stored_config", "overrides", "launch.run_folder"),
        *("checkpoints.trained_model", "checkpoints.checkpoint_folder"),
        # Held-out rows are loaded like those of training.
        "train.host_batches",
    },
    # Conversations with a trained model.
    "serve": {"batch", "data", "models", "decoding", "evals.evaluator"},
    "interop": {
        *("config", "stored_config", "storage", "batch", "host_memory", "layers", "models"),
        *("checkpoints.weights_folder", "data.tokenizers", "data.chat_formats"),
    },
    "small_config": {"config", "data", "parallel"},
    # The composition root assembles data, model, trainer and evaluators.
    "experiment": {
        *("config", "storage", "batch", "multihost", "models", "data", "train", "evals"),
        *("checkpoints.initial_weights", "small_config"),
    },
    "launch": {
        *("config", "config_file", "overrides", "stored_config", "storage", "command", "flags"),
        *("multihost", "experiment_folders", "checkpoints.checkpoint_folder"),
    },
    # Loads the experiment from its config, as a launch does.
    "rehearse": {
        *("config", "stored_config", "storage", "batch", "command", "flags", "parallel", "models"),
        "launch",
    },
    # Runs launches as processes of their own, and fits laws that the trainer reads.
    "studies": {
        *("storage", "experiment_folders", "launch.named_configs"),
        "train.optimizers.learning_rate",
    },
    "batch_page": {"batch", "data"},
    # Commands that users run; they use all of the package and are imported by name alone.
    "commands": {
        *("config", "storage", "batch", "host_memory", "command", "flags", "experiment_folders"),
        *("multihost", "data", "models", "checkpoints", "decoding", "evals", "interop", "launch"),
        *("studies", "serve", "batch_page"),
    },
    "__main__": {"command"},
}
# Subpackages of `data` -> the other parts of `data` that they may import.
ROOMS = {
    "data.readers": {"record_files"},
    "data.sources": {"readers", "record_files", "records"},
    "data.chat_formats": {"record_files"},
    "data.corpora": {
        *("readers", "sources", "record_files", "images", "splitting", "chat_formats", "grounding"),
        "format_prompts",
    },
    "data.tokenizers": {"record_files"},
    "data.ingest": {
        *("readers", "record_files", "records", "images", "grounding", "format_prompts"),
    },
    "data.ingest.formats": {
        *("readers", "record_files", "records", "images", "grounding", "format_prompts"),
    },
}
# Libraries that a part may not import directly.
FORBIDDEN = {
    "": {"torch", "tensorflow", "seqio", "tensorflow_datasets", "pickle"},
    "field_types": {"jax", "flax", "numpy", "ml_collections"},
    "config": {"jax", "flax", "numpy", "ml_collections"},
    "batch": {"jax", "flax", "grain"},
    "image_buffer": {"jax", "flax", "grain"},
    "data": {"jax", "flax", "optax", "orbax"},
    "layers": {"optax", "orbax", "grain"},
    "models": {"optax", "orbax", "grain"},
}


# Code that exports copy next to models; it is never imported here.
COPIED = ROOT / "mm1_jax" / "interop" / "hf_model"


def _modules() -> list[Path]:
    return sorted(p for p in (ROOT / "mm1_jax").rglob("*.py") if COPIED not in p.parents)


def _imports(path: Path) -> list[str]:
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def _part(path: Path) -> str:
    parts = path.relative_to(ROOT / "mm1_jax").with_suffix("").parts
    return parts[0]


@pytest.mark.parametrize("path", _modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_in_the_allowed_direction(path):
    part = _part(path)
    if part == "__init__":
        assert _imports(path) == ["mm1_jax.experiment_folders", "mm1_jax.former_names"]
        return
    assert part in ALLOWED, f"{path}: give the new part {part!r} its place in ALLOWED"
    for name in _imports(path):
        top, _, rest = name.partition(".")
        assert top not in {"experiments", "tools", "tests"}, f"{path} imports {name}"
        assert top not in FORBIDDEN[""] | FORBIDDEN.get(part, set()), f"{path} imports {name}"
        if top == "mm1_jax" and rest != "__version__":
            target = rest.split(".")[0]
            # Modules that declare fields also need field types.
            targets = ALLOWED[part] | {part}
            targets |= {"field_types"} if "config" in targets else set()
            allowed = any(rest == to or rest.startswith(to + ".") for to in targets)
            assert allowed, f"{path}: {part} may not import {target} ({name})"


@pytest.mark.parametrize("room", ROOMS)
def test_data_subpackages_import_only_earlier_ones(room):
    part = room.partition(".")[0]
    allowed = tuple(f"mm1_jax.{name}." for name in (room, *(f"{part}.{x}" for x in ROOMS[room])))
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in (ROOT / "mm1_jax" / room.replace(".", "/")).rglob("*.py")
        for name in _imports(path)
        if name.startswith(f"mm1_jax.{part}.") and not name.startswith(allowed)
    ]
    assert wrong == []


def test_only_conversions_import_foreign_formats():
    """Training reads records only, so just the conversion imports readers of foreign formats."""
    assert [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in _modules()
        for name in _imports(path)
        if name.startswith("mm1_jax.data.ingest")
        and "ingest" not in path.parts
        and path.stem != "convert_records"
    ] == []


def test_functions_contain_no_imports():
    """An import inside a function usually hides a cycle, which means a misplaced module.

    Commands are exempt: nothing imports them, and their `--help` does not wait for late imports.
    """
    inside = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in _modules()
        if "commands" not in path.parts
        for function in ast.walk(ast.parse(path.read_text()))
        if isinstance(function, ast.FunctionDef)
        for node in ast.walk(function)
        if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    assert inside == []


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("mm1_jax.__main__", {"jax", "flax", "grain", "numpy", "attrs", "absl"}),
        ("mm1_jax.launch.__main__", {"jax", "flax", "grain", "numpy"}),
        ("mm1_jax.rehearse.__main__", {"jax", "flax", "grain"}),
        ("mm1_jax.config", {"jax", "flax", "numpy", "ml_collections"}),
        # These take seconds to import, which only a run needs.
        ("mm1_jax.experiment", {"torch", "tensorflow", "tensorboardX", "sklearn"}),
    ],
)
def test_light_modules_do_not_import_heavy_libraries(module, absent):
    code = f"import {module}, sys; print(sorted({absent!r} & set(sys.modules)))"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


def test_training_needs_neither_torch_nor_tensorflow():
    """tensorboardX imports torch if it is installed; here, importing either fails."""
    code = (
        "import sys; sys.modules.update(torch=None, tensorflow=None); "
        "import mm1_jax.experiment, tensorboardX"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
