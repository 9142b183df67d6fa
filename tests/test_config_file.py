import json
import sys
from dataclasses import asdict

import pytest

from mm1_jax.config import REQUIRED
from mm1_jax.config_file import as_json, every_field, full_text, read_config_file
from mm1_jax.launch.launch import Launch
from mm1_jax.launch.named_configs import named_configs

# Configs whose structure differs; the others are variants of these.
NAMES = (
    *("mm1_tiny", "mm1_tiny_moe", "mm1_tiny_names", "mm1_tiny_easy_vqa", "mm1_tiny_textbooks"),
    *("mm1_7b_moe", "mm1_1b_aim_600m", "mm1_1b_filled_captions", "llama2_7b", "mm1_qwen3_1p7b"),
)


def _written(folder, name, overrides=None, **changes):
    """A file of a config, whose keys or fields `changes` replace."""
    launch = Launch(name, None, overrides or {})
    content = json.loads(as_json(name, launch.written_config(), launch.resolved_config()))
    for key, value in changes.items():
        content[key] = value(content[key]) if callable(value) else value
    path = folder / "file.json"
    path.write_text(json.dumps(content))
    return path


def _launch(path, overrides=None, module=None):
    file = read_config_file(path)
    return Launch(file.config, module, overrides or {}, asdict(file))


@pytest.mark.parametrize("name", NAMES)
def test_a_file_round_trips_to_an_equal_config(tmp_path, name):
    read, named = _launch(_written(tmp_path, name)), Launch(name)
    assert read.written_config() == named.written_config()
    assert read.resolved_config() == named.resolved_config()


def test_a_file_keeps_overridden_fields(tmp_path):
    overrides = {
        "model.connector": "AveragePooling",
        "trainer.wandb.project": "x",
        "evals": "held_out_loss",
        "trainer.optimizer.clip": "None",
    }
    read = _launch(_written(tmp_path, "mm1_tiny", overrides)).resolved_config()
    assert read == Launch("mm1_tiny", None, overrides).resolved_config()
    assert read.trainer.optimizer.clip is None and list(read.evals) == ["held_out_loss"]


def test_derived_fields_follow_an_override_of_a_file(tmp_path):
    overrides = {"model.connector.num_image_tokens": "9", "trainer.max_steps": "7"}
    cfg = _launch(_written(tmp_path, "mm1_tiny"), overrides).resolved_config()
    assert cfg == Launch("mm1_tiny", None, overrides).resolved_config()
    assert cfg.input.num_image_tokens == 9 and cfg.trainer.optimizer.decay_steps == 7


def test_missing_fields_of_a_file_have_their_defaults(tmp_path):
    path = _written(
        tmp_path, "mm1_tiny", fields=lambda x: {k: v for k, v in x.items() if "seed" not in k}
    )
    assert _launch(path).resolved_config() == Launch("mm1_tiny").resolved_config()


def test_a_file_contains_every_field_even_unset_ones():
    cfg = Launch("mm1_tiny").resolved_config()
    fields = every_field(cfg)
    assert fields["trainer.wandb"] is None and fields["input.stages"] == []
    assert fields["model.connector.input_dim"] is REQUIRED
    assert fields["trainer.initial_weights"] == {}
    assert set(cfg.to_flat_dict(omit_default_values=())) <= set(fields)
    lines = full_text(cfg).splitlines()
    assert len(lines) == len(fields)
    assert {"trainer.wandb: None", "input.stages: []"} <= set(lines)
    assert set(cfg.debug_string().splitlines()) <= set(lines)


CONNECTOR = "mm1_jax.models.connectors"


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("trainer.max_step", 3, "Trainer has no field 'max_step'; did you mean max_steps?"),
        ("trainr.max_steps", 3, "Experiment has no field 'trainr'; did you mean trainer?"),
        ("trainer.max_steps", "x", "trainer.max_steps='x': expected a whole number"),
        ("trainer.max_steps", 0, "trainer.max_steps=0: expected at least 1"),
        ("trainer.max_steps", None, "trainer.max_steps=None: expected a whole number"),
        ("trainer.optimizer.b1", "0.9", "trainer.optimizer.b1='0.9': expected a number"),
        ("trainer.optimizer.schedule", "Schedule.COS", "expected one of COSINE, LINEAR"),
        ("model.dtype", "float8", "expected one of 'float32', 'bfloat16'"),
        ("evals['digits_vqa'].shots[0]", "x", "evals['digits_vqa'].shots[0]='x': expected a whole"),
        ("input.streams[7].weight", 1, "input.streams: expected items from input.streams[0] on"),
        ("input.streams[0].weight]", 1, "expected a path such as input.streams[0].weight"),
        ("input.streams[0]", 1, "is a value in one line of the file, and a part"),
        ("trainer.wandb", {"project": "x"}, "expected a field a line"),
        (
            "input.image_size",
            64,
            'the other fields make it 32; to set it, remove it from "derived"',
        ),
        ("klass", "mm1_jax.models.mm1.MM1", "evals: MM1 has no field 'evals'"),
        ("model.connector.klass", f"{CONNECTOR}.c_abstractor.CAbstractr", "did you mean"),
        ("model.connector.klass", f"{CONNECTOR}.none.None", "expected the import path of a class"),
        (
            "trainer.optimizer.klass",
            f"{CONNECTOR}.mlp.MLP",
            "is a config of MLP, expected a config",
        ),
    ],
)
def test_an_error_names_the_file_the_field_and_what_was_expected(tmp_path, field, value, said):
    path = _written(tmp_path, "mm1_tiny", fields=lambda fields: {**fields, field: value})
    with pytest.raises(ValueError) as error:
        _launch(path).resolved_config()
    message = str(error.value)
    assert message.startswith(f"--config_file={path}: ") and said in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("field", "name"),
    [
        ("input.streams[0].corpora[0].corpus.to_document", "os.system"),
        ("input.streams[0].corpora[0].corpus.to_document", "mm1_jax.storage.write_whole"),
        ("model.connector.klass", "subprocess.Popen"),
        ("klass", "subprocess.Popen"),
    ],
)
def test_a_file_cannot_name_a_class_or_function_that_configs_do_not_use(tmp_path, field, name):
    path = _written(tmp_path, "mm1_tiny", fields=lambda fields: {**fields, field: name})
    with pytest.raises(ValueError, match="expected the import path of a class of mm1_jax"):
        _launch(path).resolved_config()


def test_reading_a_file_imports_no_module(tmp_path, monkeypatch):
    (tmp_path / "trap.py").write_text("raise SystemExit('imported')\nclass Trap: ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    for field in ("model.connector.klass", "input.streams[0].corpora[0].corpus.to_document"):
        path = _written(tmp_path, "mm1_tiny", fields=lambda x, at=field: {**x, at: "trap.Trap"})
        with pytest.raises(ValueError, match="trap.Trap"):
            _launch(path).resolved_config()
    assert "trap" not in sys.modules


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is not JSON"),
        ("[]", 'expected an object with "fields"'),
        ('{"fields": {}, "overides": {}}', "there is no key 'overides'"),
        ('{"fields": {}, "derived": {"a": 1}}', 'a: is in "derived" and not in "fields"'),
        ('{"fields": {}}', "klass: is missing, expected the import path of a class"),
        ('{"fields": {"a": 1}, "config": 3}', 'expected a name as "config"'),
    ],
)
def test_a_file_of_another_layout_is_an_error(tmp_path, text, said):
    (tmp_path / "file.json").write_text(text)
    with pytest.raises(ValueError) as error:
        _launch(tmp_path / "file.json").resolved_config()
    assert str(error.value).startswith(f"--config_file={tmp_path / 'file.json'}: ")
    assert said in str(error.value)


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="none.json: cannot be read"):
        read_config_file(tmp_path / "none.json")


def test_former_names_of_classes_are_read(tmp_path):
    former = "mm1_jax.train.optimizer.AdamW"
    path = _written(tmp_path, "mm1_tiny", fields=lambda x: {**x, "trainer.optimizer.klass": former})
    assert _launch(path).resolved_config() == Launch("mm1_tiny").resolved_config()


def test_all_named_configs_can_be_stored():
    for name, make in named_configs().items():
        cfg = make()
        as_json(name, cfg, cfg)
