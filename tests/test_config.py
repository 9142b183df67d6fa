import collections
import copy
import dataclasses
import enum
import functools
import inspect
import math
import pickle
from collections import defaultdict
from collections.abc import Callable
from typing import Any, Optional, Union, get_origin

import attrs
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from mm1_jax import config
from mm1_jax.config import (
    REQUIRED,
    ConfigBase,
    Configurable,
    InstantiableConfig,
    InvalidConfigClassError,
    InvalidConfigNameError,
    InvalidConfigValueError,
    MissingConfigClassDecoratorError,
    NonConfigFieldError,
    Required,
    RequiredFieldMissingError,
    RequiredFieldValue,
    UnknownFieldError,
    check_values,
    close_names,
    config_class,
    config_for_class,
    config_for_function,
    derived,
    is_derived,
    maybe_instantiate,
    maybe_set_config,
    missing_fields,
    similar_names,
    validate_config_field_name,
    validate_config_field_value,
)


class Layer(Configurable):
    @config_class
    class Config(Configurable.Config):
        input_dim: Required[int] = REQUIRED
        output_dim: Required[int] = REQUIRED
        scale: float = 1.0

    def __init__(self, cfg: Config, *, log: list | None = None):
        super().__init__(cfg)
        self.log = log


class Network(Configurable):
    @config_class
    class Config(Configurable.Config):
        dim: Required[int] = REQUIRED
        up: Layer.Config = Layer.default_config()
        layers: list[Layer.Config] = []
        name: str | None = None

    def __init__(self, cfg: Config):
        super().__init__(cfg)
        self.given = cfg
        self.up = cfg.up.set(input_dim=cfg.dim, output_dim=2 * cfg.dim).instantiate()


@config_class
class Plain(ConfigBase):
    num_layers: int = 10
    hidden_dim: int = 16


@dataclasses.dataclass
class Cat:
    name: str
    nickname: str | None = None
    adopted: bool | None = True


class Color(enum.Enum):
    RED = "red"


def test_a_config_class_needs_the_decorator():
    class Undecorated(ConfigBase):
        num_layers: int = 10

    with pytest.raises(MissingConfigClassDecoratorError, match="@config_class"):
        Undecorated()


def test_a_subclass_of_a_config_class_needs_the_decorator_too():
    class Undecorated(Plain):
        vocab_size: int = 10

    with pytest.raises(NonConfigFieldError, match="vocab_size"):
        Undecorated()


def test_the_decorator_needs_a_config_base():
    with pytest.raises(InvalidConfigClassError, match="ConfigBase"):

        @config_class
        class NoConfig:
            num_layers: int = 10


@pytest.mark.parametrize("name", ["_num_layers", "numLayers", "2d", "a-b", ""])
def test_field_names_are_snake_case(name):
    with pytest.raises(InvalidConfigNameError, match=f'"{name}"'):
        validate_config_field_name(name)


@pytest.mark.parametrize("name", ["_num_layers", "numLayers"])
def test_a_config_class_has_valid_field_names(name):
    with pytest.raises(InvalidConfigNameError):
        config_class(type("Config", (ConfigBase,), {"__annotations__": {name: int}, name: 1}))


def _function(self):
    return self


@pytest.mark.parametrize("value", [10, _function, lambda self: self, Cat("Tom"), property(len)])
@pytest.mark.parametrize("name", ["num_layers", "new_name"])
def test_every_field_needs_an_annotation(name, value):
    with pytest.raises(NonConfigFieldError, match=name):
        config_class(type("Config", (Plain,), {name: value}))


def test_config_methods_may_be_overridden_but_not_added():
    @config_class
    class Overriding(Plain):
        def set(self, **kwargs):
            return super().set(**{name: 2 * value for name, value in kwargs.items()})

    assert Overriding().set(num_layers=2).num_layers == 4
    assert Overriding().clone(num_layers=2).num_layers == 4

    @config_class
    class Adding(Plain):
        def total(self):
            return self.num_layers * self.hidden_dim

    with pytest.raises(NonConfigFieldError, match="total"):
        Adding()


def test_attributes_set_on_the_class_later_are_found():
    @config_class
    class Config(ConfigBase):
        pass

    Config.other_field = 1
    with pytest.raises(NonConfigFieldError, match="other_field"):
        Config()


def test_a_config_is_a_collection_of_named_fields():
    cfg = Plain()
    assert len(cfg) == 2 and "num_layers" in cfg and "klass" not in cfg
    assert cfg.keys() == ["hidden_dim", "num_layers"]
    assert cfg.items() == [("hidden_dim", 16), ("num_layers", 10)]
    cfg.num_layers = 12
    assert attrs.fields(type(cfg)).num_layers.default == 10 and Plain().num_layers == 10
    assert type(cfg).__name__ == f"config_class({__name__}.Plain)"


def test_fields_are_given_by_name_to_the_constructor():
    assert Plain(num_layers=3).num_layers == 3
    with pytest.raises(TypeError):
        Plain(3)
    with pytest.raises(TypeError, match="num_layer"):
        Plain(num_layer=3)


def test_configs_are_equal_by_value():
    assert Plain() == Plain() != Plain(num_layers=1)
    assert Network.default_config() == Network.default_config()
    assert Network.default_config() != Network.default_config().set(dim=3)


def test_a_subclass_inherits_and_redefines_fields():
    @config_class
    class Child(Plain):
        num_layers: float = 0.5
        dim: int

    cfg = Child(dim=16)
    assert isinstance(cfg, Plain) and (cfg.hidden_dim, cfg.num_layers, cfg.dim) == (16, 0.5, 16)
    assert attrs.fields(Child).num_layers.type is float
    assert attrs.fields(Plain).num_layers.type is int
    with pytest.raises(TypeError, match="dim"):
        Child()


def test_values_are_copied_when_they_are_assigned():
    @config_class
    class Config(ConfigBase):
        values: list = []
        child: Plain = Plain()

    first, second = Config(), Config()
    first.values.append(1)
    first.child.num_layers = 3
    assert second.values == [] and second.child == Plain()
    values, child = [1, [2]], Plain()
    second.set(values=values, child=child)
    values[1].append(3)
    child.num_layers = 4
    assert second.values == [1, [2]] and second.child.num_layers == 10
    copied = copy.deepcopy(second)
    copied.child.num_layers = 5
    assert second.child.num_layers == 10


def test_set_modifies_in_place_and_clone_copies():
    cfg = Plain()
    clone = cfg.clone(num_layers=8)
    assert (clone.num_layers, cfg.num_layers) == (8, 10)
    assert cfg.set(num_layers=6, hidden_dim=1) is cfg
    assert (cfg.num_layers, cfg.hidden_dim) == (6, 1)


def test_an_unknown_field_names_the_close_ones_or_all():
    cfg = Plain()
    with pytest.raises(UnknownFieldError, match=r"num_layer \(did you mean: \[num_layers\]\)"):
        cfg.num_layer = 5
    with pytest.raises(UnknownFieldError, match=r"\(keys are \['hidden_dim', 'num_layers'\]\)"):
        cfg.set(vocab_size=1024)
    with pytest.raises(AttributeError, match=r"did you mean: \[num_layers\]"):
        _ = cfg.num_layer
    assert not hasattr(cfg, "vocab_size")


def test_a_config_class_may_handle_unknown_fields():
    @config_class
    class Lenient(ConfigBase):
        a: Required[int] = REQUIRED

        def __getattr__(self, name: str) -> Any:
            try:
                return super().__getattr__(name)
            except KeyError:
                return "default"

        def set(self, **kwargs):
            try:
                return super().set(**kwargs)
            except UnknownFieldError:
                return self

    cfg = Lenient().set(a=1)
    for each in (cfg, cfg.set(b=2), cfg.clone(b=2)):
        assert (each.a, each.b) == (1, "default")


def test_close_names_share_most_of_their_pieces():
    names = ["num_layers", "num_heads", "layer_norm", "dim"]
    assert similar_names("num_layer", names) == ["num_layers"]
    assert similar_names("layer", names) == ["layer_norm", "num_layers"]
    assert similar_names("x", names) == [] == similar_names("vocabulary", names)
    assert close_names("dmi", names) == ["dim"] and close_names("num_layer", names)[0] == names[0]


def test_required_is_a_false_singleton():
    assert repr(REQUIRED) == str(REQUIRED) == "REQUIRED" and not REQUIRED
    assert isinstance(REQUIRED, RequiredFieldValue)
    for copied in (copy.copy(REQUIRED), copy.deepcopy([REQUIRED])[0]):
        assert copied is REQUIRED
    assert pickle.loads(pickle.dumps(REQUIRED)) is REQUIRED


def test_all_missing_fields_are_listed_at_once():
    with pytest.raises(RequiredFieldMissingError, match=r"Layer.*: input_dim, output_dim$"):
        Layer.default_config().instantiate()
    cfg = Network.default_config().set(layers=[Layer.default_config().set(input_dim=1)])
    with pytest.raises(RequiredFieldMissingError) as error:
        cfg.instantiate()
    message = str(error.value)
    assert "required field when instantiating" in message and ": dim." in message
    for path in ("up.input_dim", "up.output_dim", "layers[0].output_dim"):
        assert path in message
    assert "layers[0].input_dim" not in message


def test_derived_fields_are_required_but_not_reported_as_missing():
    class Part(Configurable):
        @config_class
        class Config(Configurable.Config):
            dim: Required[int] = derived()
            size: int | None = derived(None)
            width: Required[int] = REQUIRED

    class Special(Part):
        @config_class
        class Config(Part.Config):
            parts: list[Part.Config] = [Part.default_config()]

    cfg = Special.default_config()
    assert missing_fields(cfg) == ["width", "parts[0].width"]
    assert [name for name in cfg.keys() if is_derived(cfg, name)] == ["dim", "size"]  # noqa: SIM118
    assert cfg.size is None and cfg.dim is REQUIRED
    with pytest.raises(RequiredFieldMissingError, match=r"Special.*: dim, width\."):
        cfg.instantiate()
    cfg.set(dim=1, width=2).parts[0].width = 3
    assert missing_fields(cfg) == []


def test_a_constructor_may_fill_in_the_fields_of_children():
    cfg = Network.default_config().set(dim=3)
    network = cfg.instantiate()
    assert network.up.config.output_dim == 6
    assert cfg.up.output_dim is REQUIRED


def test_the_constructor_gets_its_own_copy_of_the_config():
    cfg = Network.default_config().set(dim=3)
    network = cfg.instantiate()
    assert network.given is not cfg
    network.config.up.scale = 7
    assert network.config.up.scale == 1 == cfg.up.scale


def test_runtime_arguments_must_not_be_fields():
    cfg = Layer.default_config().set(input_dim=1, output_dim=2)
    log = []
    assert cfg.instantiate(log=log).log is log
    with pytest.raises(ValueError, match="scale.*Layer"):
        cfg.instantiate(scale=2.0)


def test_a_default_config_makes_its_class():
    class Special(Layer):
        pass

    cfg = Special.default_config().set(input_dim=1, output_dim=2)
    assert isinstance(cfg, Layer.Config) and isinstance(cfg, InstantiableConfig)
    assert type(cfg.instantiate()) is Special and cfg.klass is Special
    assert repr(cfg.instantiate()) == repr(cfg)


def test_generic_config_classes_are_supported():
    @config_class
    class Config(InstantiableConfig[int]):
        value: int = 3

        def instantiate(self, **kwargs) -> int:
            return self.value

    assert maybe_instantiate(Config()) == 3 == maybe_instantiate(3)
    with pytest.raises(NotImplementedError):
        InstantiableConfig.instantiate(Config())


def test_maybe_set_config_sets_only_existing_fields():
    cfg = maybe_set_config(Plain(), num_layers=2, vocab_size=3)
    assert cfg.num_layers == 2 and "vocab_size" not in cfg


def test_fields_are_read_and_set_by_path():
    cfg = Network.default_config()
    cfg.set_recursively(["up", "scale"], value=2.0)
    assert cfg.get_recursively(["up", "scale"]) == 2.0 and cfg.get_recursively([]) is cfg
    with pytest.raises(AttributeError, match="dimm"):
        cfg.get_recursively(["up", "dimm"])
    with pytest.raises(AttributeError, match="scal"):
        cfg.set_recursively(["up", "scal"], value=20)
    with pytest.raises(ValueError, match="empty path"):
        cfg.set_recursively([], value=20)


Pair = collections.namedtuple("Pair", "first second")


@attrs.define
class Point:
    x: int
    y: type


@pytest.mark.parametrize(
    ("value", "lines", "plain"),
    [
        (3, "v: 3", 3),
        ("a", "v: 'a'", "a"),
        ([1, np.float64], "v[0]: 1\nv[1]: 'numpy.float64'", [1, "numpy.float64"]),
        ((1, [2]), "v[0]: 1\nv[1][0]: 2", (1, [2])),
        (range(2), "v[0]: 0\nv[1]: 1", [0, 1]),
        ({"a": 1, 2: None}, "v['a']: 1\nv[2]: None", {"a": 1, 2: None}),
        (Pair(1, int), "v['first']: 1\nv['second']: 'builtins.int'", ["first", "second"]),
        (Point(1, int), "v['x']: 1\nv['y']: 'builtins.int'", {"x": 1, "y": "builtins.int"}),
        (Cat, f"v: '{__name__}.Cat'", f"{__name__}.Cat"),
        (Point, f"v: '{__name__}.Point'", f"{__name__}.Point"),
        (similar_names, "v: 'mm1_jax.config.similar_names'", "mm1_jax.config.similar_names"),
        (Color.RED, "v: <Color.RED: 'red'>", Color.RED),
        (np.dtype("float32"), "v: dtype('float32')", np.dtype("float32")),
        (Plain(), "v.hidden_dim: 16\nv.num_layers: 10", {"hidden_dim": 16, "num_layers": 10}),
        ({"a": [Plain()]}, "v['a'][0].hidden_dim: 16\nv['a'][0].num_layers: 10", None),
    ],
)
def test_values_are_serialized(value, lines, plain):
    @config_class
    class Config(ConfigBase):
        v: Any = None

    cfg = Config().set(v=value)
    assert cfg.debug_string() == str(cfg) == lines
    if isinstance(plain, list) and isinstance(value, Pair):
        assert list(cfg.to_dict()["v"]) == plain
    elif plain is not None:
        assert cfg.to_dict() == {"v": plain}


def test_a_small_config_is_written_in_one_line():
    assert repr(Plain()) == "hidden_dim:16; num_layers:10"


def test_a_default_dict_is_written_as_a_dict():
    @config_class
    class Config(ConfigBase):
        values: dict[str, int] = defaultdict(lambda: 1, a=2)

    out = Config().to_dict()["values"]
    assert type(out) is dict and out == {"a": 2}


def test_dataclasses_omit_their_trivial_defaults():
    @config_class
    class Config(ConfigBase):
        cats: list[Cat] = [Cat("Tom")]
        missing: Required[int] = REQUIRED
        notes: str | None = None

    flat = {"cats[0]['name']": "Tom", "cats[0]['adopted']": True}
    assert Config().to_flat_dict(omit_default_values={None, REQUIRED}) == flat
    assert Config().debug_string() == "cats[0]['name']: 'Tom'\ncats[0]['adopted']: True"
    everything = {"cats[0]['nickname']": None, "missing": REQUIRED, "notes": None}
    assert Config().to_flat_dict(omit_default_values=()) == flat | everything


VALUES = (REQUIRED, None, False, 0, 0.0, "")


@pytest.mark.parametrize("omitted", [{None, REQUIRED}, {}], ids=str)
@pytest.mark.parametrize("default", VALUES, ids=repr)
@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_only_unchanged_trivial_defaults_are_omitted(default, value, omitted):
    @config_class
    class Config(ConfigBase):
        field: Any = default

    flat = Config().set(field=value).to_flat_dict(omit_default_values=omitted)
    is_omitted = value is default and default in omitted
    assert flat == ({} if is_omitted else {"field": value})


def test_a_child_config_may_flatten_itself():
    @config_class
    class Secret(ConfigBase):
        key: str = "abc"

        def to_flat_dict(self, *, omit_default_values):
            return {"key": "***"}

    @config_class
    class Parent(ConfigBase):
        secrets: list[Secret] = [Secret()]

    assert Parent().debug_string() == "secrets[0].key: '***'"


def test_visit_enters_and_leaves():
    cfg = Network.default_config().set(dim=1, name="net")
    leaves, left = {}, []

    def enter(key, value, children):
        return None if key == "up" else children

    cfg.visit(leaves.__setitem__, enter, lambda key, _: left.append(key))
    assert leaves == {"dim": 1, "name": "net", "klass": Network, "up": cfg.up}
    assert left == ["layers", ""]


@pytest.mark.parametrize("value", [object(), np.zeros(2), b"bytes", {1}, [object()], {"a": {1}}])
def test_values_that_cannot_be_serialized_are_rejected(value):
    @config_class
    class Config(ConfigBase):
        field: Any = None

    with pytest.raises(InvalidConfigValueError, match="register_validator"):
        Config().field = value
    with pytest.raises(InvalidConfigValueError):
        validate_config_field_value(Cat(name=value))


def test_hugging_face_configs_are_values():
    class Pretrained:
        def from_pretrained(self): ...

        def to_dict(self):
            return {"a": 1}

    validate_config_field_value(Pretrained)
    validate_config_field_value(Pretrained())


def test_every_matching_validator_must_accept(monkeypatch):
    monkeypatch.setattr(config, "_validators", dict(config._validators))

    class Custom:
        value = 0

    def check(custom):
        if custom.value <= 0:
            raise InvalidConfigValueError(f"{custom.value} is not positive")

    @config_class
    class Config(ConfigBase):
        custom: Any = Custom()

    with pytest.raises(InvalidConfigValueError):
        Config()
    config.register_validator(match_fn=lambda v: isinstance(v, Custom), validate_fn=check)
    with pytest.raises(InvalidConfigValueError, match="not positive"):
        Config()
    Custom.value = 1
    Config()

    def refuse(custom):
        raise InvalidConfigValueError("never")

    config.register_validator(match_fn=lambda v: isinstance(v, Custom), validate_fn=refuse)
    with pytest.raises(InvalidConfigValueError, match="never"):
        Config()


class Affine:
    def __init__(self, in_features: int, out_features: int, bias: bool = True):
        self.sizes = (in_features, out_features, bias)


def test_a_config_for_a_class_has_the_constructors_parameters():
    cfg = config_for_class(Affine)
    assert type(cfg).__name__ == f"config_for_class({__name__}.Affine)"
    assert cfg.keys() == ["bias", "in_features", "klass", "out_features"]
    assert cfg.klass is Affine and cfg.in_features is REQUIRED and cfg.bias is True
    with pytest.raises(UnknownFieldError):
        cfg.unknown = 1
    with pytest.raises(RequiredFieldMissingError, match="in_features, out_features"):
        cfg.instantiate()
    cfg.set(in_features=8)
    assert cfg.instantiate(out_features=4).sizes == (8, 4, True)
    assert cfg.clone(out_features=3).instantiate(bias=False).sizes == (8, 3, False)


def test_a_config_for_a_dataclass_or_attrs_class_calls_its_factories():
    @dataclasses.dataclass
    class Data:
        x: int
        values: list = dataclasses.field(default_factory=list)

    @attrs.define
    class Attrs:
        x: int
        values: list = attrs.Factory(list)

    for cls in (Data, Attrs):
        cfg = config_for_class(cls).set(x=1)
        first, second = cfg.instantiate(), cfg.instantiate()
        assert first == cls(1, []) and first.values is not second.values


def test_arrays_are_passed_at_run_time():
    def total(axis: int, x: np.ndarray) -> np.ndarray:
        return x.sum(axis=axis)

    cfg = config_for_function(total).set(axis=0)
    np.testing.assert_array_equal(cfg.instantiate(x=np.ones((2, 3))), [2, 2, 2])
    with pytest.raises(RequiredFieldMissingError, match="required field .* x"):
        cfg.instantiate()


def test_a_config_for_a_function_keeps_names_and_types():
    def load(name: str, n: Union[int, str], z: Required[float], *, split: Optional[str] = None):  # noqa: UP007, UP045
        return name, n, z, split

    cfg = config_for_function(load)
    function_name = "test_a_config_for_a_function_keeps_names_and_types.<locals>.load"
    assert type(cfg).__name__ == f"config_for_function({__name__}.{function_name})"
    types = {field.name: field.type for field in attrs.fields(type(cfg))}
    assert get_origin(types.pop("fn")) is Callable
    assert types == {
        "name": str,
        "n": Union[int, str],  # noqa: UP007
        "z": Required[float],
        "split": Optional[str],  # noqa: UP045
    }
    assert cfg.set(name="a", n=1, z=2.0).instantiate(split="b") == ("a", 1, 2.0, "b")


def test_variadic_parameters_are_fields():
    def positional(*values):
        return list(values)

    def named(**values):
        return values

    assert config_for_function(positional).set(values=[1, 2]).instantiate() == [1, 2]
    cfg = config_for_function(named).set(values={"a": 1, "b": 2})
    assert cfg.instantiate(a=3) == {"a": 3, "b": 2}
    with pytest.raises(RequiredFieldMissingError, match="values"):
        config_for_function(named).instantiate()
    partial = config_for_class(functools.partial).set(args=(pow,), kwargs={"exp": 2})
    assert partial.instantiate()(3) == 9


@pytest.mark.parametrize(
    ("fn", "kwargs", "error", "message"),
    [
        (math.pow, {"x": 2, "y": 3}, NotImplementedError, "param kind POSITIONAL_ONLY"),
        (lambda fn: fn, {}, ValueError, "'fn' parameter"),
        (lambda _: 1, {}, ValueError, "'_' parameter"),
        (lambda _x: 1, {}, InvalidConfigNameError, "_x"),
    ],
)
def test_functions_that_cannot_be_configured_are_refused(fn, kwargs, error, message):
    with pytest.raises(error, match=message):
        config_for_function(fn).set(**kwargs).instantiate()


def test_builtin_functions_can_be_configured():
    assert config_for_function(pow).set(base=2, exp=3).instantiate() == 8


class Uncopyable:
    """Like wrapt's proxies, a function according to `isinstance` that cannot be copied."""

    __class__ = type(lambda: None)

    def __init__(self):
        self.__module__, self.__qualname__, self.__name__ = "m", "f", "f"
        self.__signature__ = inspect.signature(lambda x: x)

    def __call__(self, x: str):
        return x

    def __deepcopy__(self, memo):
        raise NotImplementedError


def test_functions_are_kept_by_reference():
    fn = Uncopyable()
    cfg = config_for_function(fn).set(x="a")

    @config_class
    class Parent(ConfigBase):
        child: InstantiableConfig = cfg

    assert cfg.fn is fn and cfg.clone().fn is fn and Parent().child.fn is fn
    assert Parent().child.instantiate() == "a"


def test_configs_can_be_pickled():
    cfg = pickle.loads(pickle.dumps(Plain(num_layers=3).to_dict()))
    assert Plain().set(**cfg).num_layers == 3


def test_fields_may_be_excluded_from_texts():
    @dataclasses.dataclass
    class Data:
        shown: int = 1
        hidden: int = dataclasses.field(default=2, metadata={"skip_serialization": True})

    @attrs.define
    class Attrs:
        shown: int = 1
        hidden: int = attrs.field(default=2, metadata={"skip_serialization": True})

    @config_class
    class Config(ConfigBase):
        shown: int = 1
        hidden: int = attrs.field(default=2, metadata={"skip_serialization": True})
        data: Data = Data()
        more: Attrs = Attrs()

    cfg = Config()
    assert cfg.hidden == 2 and cfg.clone(hidden=5).hidden == 5
    assert cfg.debug_string() == "data['shown']: 1\nmore['shown']: 1\nshown: 1"
    assert cfg.to_dict() == {"shown": 1, "data": {"shown": 1}, "more": {"shown": 1}}


def test_a_partition_spec_is_a_value():
    @config_class
    class Config(ConfigBase):
        spec: PartitionSpec | None = None

    cfg = Config().set(spec=PartitionSpec("data", None))
    assert cfg.clone().spec == PartitionSpec("data", None) == cfg.to_dict()["spec"]
    assert cfg.debug_string() == f"spec: {PartitionSpec('data', None)!r}"
    check_values(cfg)
