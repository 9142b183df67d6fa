import enum
import importlib
import json
from typing import Any

import numpy as np
import pytest

from mm1_jax.config import REQUIRED, Configurable, Required, config_class
from mm1_jax.data.tokenizers.sentencepiece import Tokenizer
from mm1_jax.launch.named_configs import named_configs
from mm1_jax.overrides import restore_values
from mm1_jax.stored_config import (
    DEFAULTS,
    RENAMED,
    as_stored,
    config_differences,
    flat_fields,
    former_defaults,
    read_fields,
    with_present_names,
)
from mm1_jax.train.optimizers.adamw import AdamW


class Norm(Configurable):
    @config_class
    class Config(Configurable.Config):
        eps: float = 1e-5


class OtherNorm(Norm):
    """A different class with the same fields as `Norm`."""


class Shade(enum.StrEnum):
    LIGHT = "a light one: <x>"
    DARK = "dark"


def _function():
    pass


class Values(Configurable):
    """A config with a field for each kind of value."""

    @config_class
    class Config(Configurable.Config):
        flag: bool = True
        count: int = 3
        ratio: float = 1.0
        limit: float = float("-inf")
        text: str = "it's: 'a'\n"
        number_as_text: str = "1.0"
        shade: Shade = Shade.LIGHT
        other: Shade | None = None
        cls: type = Norm
        function: Any = _function
        dtype: Any = np.dtype("float32")
        axes: tuple[str | None, ...] = (None, "embed")
        by_name: dict[str, float] = {"a/b": 0.1}
        parts: list[Norm.Config] = [Norm.default_config()]
        required: Required[int] = REQUIRED


class Part(Configurable):
    @config_class
    class Config(Configurable.Config):
        depth: int = 1
        norm: Norm.Config = Norm.default_config()


class SpecialPart(Part):
    """A user's class that is derived from ours."""


@pytest.fixture(autouse=True)
def _former_default(monkeypatch):
    """The default eps of `Part` was 1e-6, while that of `Norm` never changed."""
    monkeypatch.setitem(DEFAULTS, (f"{__name__}.Part", "norm.eps"), (1e-6, 1e-5))


def _text(cls=Part, **fields):
    return cls.default_config().set(**fields).debug_string()


FIELDS = {
    "axes[0]": None,
    "axes[1]": "embed",
    "by_name['a/b']": 0.1,
    "cls": f"{__name__}.Norm",
    "count": 3,
    "dtype": "dtype('float32')",
    "flag": True,
    "function": f"{__name__}._function",
    "klass": f"{__name__}.Values",
    "limit": float("-inf"),
    "number_as_text": "1.0",
    "parts[0].eps": 1e-5,
    "parts[0].klass": f"{__name__}.Norm",
    "ratio": 1.0,
    "shade": "Shade.LIGHT",
    "text": "it's: 'a'\n",
}


def test_fields_are_json_values_by_path():
    assert flat_fields(Values.default_config()) == FIELDS
    assert json.loads(json.dumps(FIELDS)) == FIELDS


def test_the_text_of_a_config_is_read_into_its_fields():
    cfg = Values.default_config()
    for stored in (cfg.debug_string(), cfg.debug_string().splitlines(), FIELDS):
        fields = read_fields(stored)
        assert fields == FIELDS
        assert {k: type(x) for k, x in fields.items()} == {k: type(x) for k, x in FIELDS.items()}
        assert config_differences(stored, cfg) == []


@pytest.mark.parametrize("name", ["mm1_tiny", "mm1_7b_moe", "mm1_qwen3_1p7b"])
def test_the_text_of_a_real_config_is_read_into_its_fields(name):
    cfg = named_configs()[name]()
    fields = flat_fields(cfg)
    assert read_fields(cfg.debug_string()) == fields == json.loads(json.dumps(fields))


@pytest.mark.parametrize(
    ("path", "value"), [("flag", 1), ("count", 3.0), ("ratio", 1), ("number_as_text", 1.0)]
)
def test_values_of_another_type_differ(path, value):
    (difference,) = config_differences({**FIELDS, path: value}, Values.default_config())
    assert difference.path == path


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("flag", False, False),
        ("count", 4, 4),
        ("limit", float("inf"), float("inf")),
        ("text", "x: y", "x: y"),
        ("number_as_text", "2.0", "2.0"),
        ("shade", "Shade.DARK", Shade.DARK),
        ("other", "Shade.DARK", Shade.DARK),
        # Stored values that the field cannot hold.
        ("shade", "Shade.BLACK", Shade.LIGHT),
        ("shade", None, Shade.LIGHT),
        ("cls", "builtins.int", Norm),
    ],
)
def test_a_stored_value_is_restored(path, value, expected):
    cfg = restore_values(Values.default_config(), {path: value})
    assert getattr(cfg, path) == expected and type(getattr(cfg, path)) is type(expected)


def test_nested_items_keys_and_fields_are_restored():
    values = {"axes[0]": None, "by_name['a/b']": 0.2, "parts[0].eps": 1e-6, "gone.x": 1}
    cfg = restore_values(Values.default_config(), values)
    assert (cfg.axes, cfg.by_name, cfg.parts[0].eps) == ((None, "embed"), {"a/b": 0.2}, 1e-6)


def test_differences_are_listed_by_path():
    text = _text().replace("depth: 1", "depth: 2\ngone: 'x: y'")
    assert [str(each) for each in config_differences(text, Part.default_config())] == [
        "depth: 2 -> 1",
        "gone: 'x: y' -> not set",
    ]


@pytest.mark.parametrize("cls", [Part, SpecialPart])
def test_a_former_default_is_distinguished_from_a_chosen_value(cls):
    def differences(eps):
        text = _text(cls).replace("1e-05", eps)
        return config_differences(text, cls.default_config())

    assert [each.is_default for each in differences("1e-06")] == [True]
    assert [each.is_default for each in differences("1e-04")] == [False]
    cfg = cls.default_config()
    cfg.norm.eps = 1e-4
    (difference,) = config_differences(_text(cls).replace("1e-05", "1e-06"), cfg)
    assert not difference.is_default


def test_a_default_belongs_to_the_containing_part():
    text = _text(Norm).replace("1e-05", "1e-06")
    assert not config_differences(text, Norm.default_config())[0].is_default


def test_a_part_can_be_restored_from_a_stored_text():
    text = _text(depth=3).replace("1e-05", "1e-06").splitlines()
    cfg = as_stored(text, Part.default_config())
    assert (cfg.depth, cfg.norm.eps) == (3, 1e-6)
    assert former_defaults(cfg) == ["norm.eps=1e-06 (the default is 1e-05 now)"]
    cfg = as_stored(text, Part.default_config(), only_defaults=True)
    assert (cfg.depth, cfg.norm.eps) == (1, 1e-6)
    assert former_defaults(Part.default_config()) == []


def test_a_renamed_class_is_not_a_difference():
    cfg = AdamW.default_config()
    now = f"{AdamW.__module__}.{AdamW.__name__}"
    former = [name for name, present in RENAMED.items() if present == now]
    assert len(former) == 2
    text = cfg.debug_string()
    for then in former:
        assert config_differences(text.replace(repr(now), repr(then)), cfg) == []
        (difference,) = config_differences(text.replace(repr(now), f"'{then}X'"), cfg)
        assert difference.path == "klass"


def test_a_moved_class_is_found_in_its_new_module():
    cfg = Tokenizer.default_config()
    now, then = "mm1_jax.data.tokenizers.sentencepiece", "mm1_jax.data.tokenizer"
    assert RENAMED[then] == now
    text = cfg.debug_string()
    assert f"'{now}.Tokenizer'" in text
    assert config_differences(text.replace(now, then), cfg) == []
    assert len(config_differences(text.replace(now, "mm1_jax.elsewhere"), cfg)) == 1


@pytest.mark.parametrize("module", ["mm1_jax.data.sources", "mm1_jax.data.sources.local"])
def test_classes_of_a_split_module_are_found_in_their_new_modules(module):
    for name, now in (("ArrayRecordSource", "array_record"), ("JsonlSource", "jsonl")):
        cfg = _class(f"mm1_jax.data.sources.{now}.{name}").default_config()
        text = cfg.debug_string()
        assert f"'mm1_jax.data.sources.{now}.{name}'" in text
        assert config_differences(text.replace(f"mm1_jax.data.sources.{now}", module), cfg) == []
    assert with_present_names(f"'{module}.FileSource'") == "'mm1_jax.data.sources.base.FileSource'"


@pytest.mark.parametrize("now", RENAMED.values())
def test_present_names_are_classes_or_modules(now):
    module, _, name = now.rpartition(".")
    if name.islower():
        try:
            importlib.import_module(now)
        except ModuleNotFoundError as error:
            # The module needs the library of an extra that is not installed.
            assert not error.name.startswith("mm1_jax")
    else:
        assert isinstance(_class(now), type)
    # Every former name maps to the present one in a single step.
    assert now not in RENAMED


@pytest.mark.parametrize("key", DEFAULTS, ids=".".join)
def test_the_last_default_in_the_table_is_the_present_one(key):
    (name, field), values = key, DEFAULTS[key]
    now = flat_fields(_class(name).default_config()).get(field)
    assert (type(now), now) == (type(values[-1]), values[-1])
    assert len(set(values)) == len(values)


def _class(name):
    module, _, name = name.rpartition(".")
    return getattr(importlib.import_module(module), name)


def test_a_new_field_has_a_default_that_keeps_the_old_meaning():
    text = AdamW.default_config().debug_string()
    before = "".join(line for line in text.splitlines(True) if "stable_steps" not in line)
    assert config_differences(before, AdamW.default_config()) == []
    (difference,) = config_differences(before, AdamW.default_config().set(stable_steps=3))
    assert str(difference) == "stable_steps: 0 -> 3"
