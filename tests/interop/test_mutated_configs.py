"""500 foreign checkpoints with a changed config or tokenizer import correctly or fail clearly.

By default a few are examined, without reading values. All are imported by

    pytest -m slow -s tests/interop/test_mutated_configs.py
"""

import json
import math

import pytest
from mutated_configs import (
    FAMILIES,
    Refused,
    facts_of_oracle,
    facts_of_parts,
    mutant,
    write_tensors,
)
from test_tokenizers import write_json_tokenizer

from mm1_jax.checkpoints.weights_folder import StoredParams
from mm1_jax.commands import convert_checkpoint
from mm1_jax.interop import families
from mm1_jax.interop.families import Changes
from mm1_jax.interop.importer import examine
from mm1_jax.interop.tokenizers import import_tokenizer

NUM_SEEDS = 500
# Enough to cover every family.
FEW = 52


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Maps families to folders with their tensors; also the files of a tokenizer."""
    root = tmp_path_factory.mktemp("tensors")
    folders = {}
    for i, family in enumerate(FAMILIES):
        folders[family] = root / str(i)
        folders[family].mkdir()
        write_tensors(family, folders[family])
    write_json_tokenizer(root)
    tokenizer = {path.name: json.loads(path.read_text()) for path in root.glob("*.json")}
    tokenizer["generation_config.json"] = {"bos_token_id": 1, "eos_token_id": 2}
    tokenizer["special_tokens_map.json"] = {"eos_token": {"content": "<|end|>"}}
    return folders, tokenizer


def placed(checkpoint, seed, folder):
    """Writes the mutant of a seed into a folder."""
    folders, tokenizer = checkpoint
    made = mutant(seed, tokenizer)
    folder.mkdir()
    for name, content in made.files.items():
        (folder / name).write_bytes(content)
    for path in folders[made.family].iterdir():
        (folder / path.name).hardlink_to(path)
    return made


def assert_named(made, message, folder):
    """Asserts that an error names the file, and the field or the tensors."""
    assert "Traceback" not in message and len(message) < 4000
    assert made.file in message or str(folder) in message, message
    if made.field is not None and made.file.endswith("config.json"):
        is_of_tensors = "tensors do not fit its config" in message
        assert made.field.lower() in message.lower() or is_of_tensors, message


def assert_same_model(made, parts):
    """Asserts that an accepted config is the model that the family's own library reads."""
    name = next(name for name in made.files if name in families.CONFIGS)
    # Decoded here, because the library may not read the encoding.
    config = json.loads(made.files[name])
    if made.family == "aim":
        assert parts["vision_encoder"].num_heads == config.get("num_heads", 2)
        return
    try:
        expected = facts_of_oracle(made.family, config)
    except Refused as error:
        # Fields without effect may have any type in an import.
        assert _is_neutral(made), error
        return
    found = facts_of_parts(parts)
    assert found.keys() == expected.keys()
    for part, values in expected.items():
        for ours, theirs in zip(_flat(found[part]), _flat(values), strict=True):
            is_close = isinstance(theirs, float) and math.isclose(ours, theirs, rel_tol=1e-9)
            assert ours == theirs or is_close, (part, found[part], values)


def _is_neutral(made):
    classes = [*families._CLASSES.values()]
    return any(klass.is_neutral(made.field) for klass in classes)


def _flat(values):
    if isinstance(values, dict):
        return [x for key in sorted(values) for x in _flat(values[key])]
    if isinstance(values, list | tuple):
        return [x for value in values for x in _flat(value)]
    return [values]


@pytest.mark.parametrize("seed", range(FEW))
def test_a_changed_config_is_read_as_by_its_library_or_rejected(seed, checkpoints, tmp_path):
    folder = tmp_path / "source"
    made = placed(checkpoints, seed, folder)
    try:
        config = families.read_config(folder)
        rows = families.num_rows(config)
        if rows:
            import_tokenizer(folder, rows, families.image_token(config))
        examined = examine(folder, Changes())
    except ValueError as error:
        assert_named(made, str(error), folder)
    else:
        assert_same_model(made, families.make_parts(examined.config, Changes()))


@pytest.mark.slow
def test_500_changed_checkpoints_are_imported_or_rejected_without_a_traceback(
    checkpoints, tmp_path, capsys
):
    counts = {"imported": 0, "refused": 0}
    for seed in range(NUM_SEEDS):
        folder, output = tmp_path / str(seed), tmp_path / f"{seed}-weights"
        made = placed(checkpoints, seed, folder)
        arguments = ["import", f"--source={folder}", f"--output={output}", "--skip_comparison"]
        code = convert_checkpoint.main(arguments)
        error = capsys.readouterr().err
        assert code in (0, 2), (seed, made.what, error)
        if code:
            assert error.startswith("error: ") and not output.exists()
            assert_named(made, error, folder)
            counts["refused"] += 1
        else:
            description = StoredParams(output).description
            assert_same_model(made, families.make_parts(description["config"], Changes()))
            counts["imported"] += 1
    with capsys.disabled():
        print(f"\n{NUM_SEEDS} changed checkpoints: {counts}, no traceback")
    assert min(counts.values()) > 50
