"""Values of config fields: types, ranges, and errors."""

import enum
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import pytest

from experiments.pretrain import mm1_tiny, mm1_tiny_moe
from mm1_jax.config import (
    REQUIRED,
    ConfigBase,
    Configurable,
    InstantiableConfig,
    Required,
    check_values,
    config_class,
    config_for_function,
)
from mm1_jax.experiment import Experiment
from mm1_jax.field_types import (
    Decay,
    NonEmpty,
    NonNegative,
    NonNegativeInt,
    Positive,
    PositiveInt,
    Range,
    Share,
    complaints,
)
from mm1_jax.overrides import apply_overrides


class Fit(enum.Enum):
    PAD = "pad"
    CROP = "crop"


class Part(Configurable):
    @config_class
    class Config(Configurable.Config):
        size: PositiveInt = 1


class OtherPart(Configurable):
    @config_class
    class Config(Configurable.Config):
        other: int = 1


PART = Part.default_config()
NAN, INF = math.nan, math.inf

RIGHT = [
    (int, 3),
    (float, 3),
    (float, 0.5),
    (bool, True),
    (str, ""),
    (Any, object()),
    (int | None, None),
    (Required[int], REQUIRED),
    (Required[PositiveInt], 2),
    (tuple[float, float], (1, 2.0)),
    (tuple[float, float], [1.0, 2.0]),
    (tuple[str, ...], ()),
    (Sequence[str], ["a"]),
    (dict[str, Positive], {"a": 0.1}),
    (list[Part.Config], [PART]),
    (Fit, Fit.PAD),
    (Fit, "pad"),
    (Literal["a", "b"], "b"),
    (Literal["a"] | None, None),
    (Callable[[int], int], abs),
    (InstantiableConfig, PART),
    (Part.Config | None, None),
    (type[int], int),
    (Share, 1),
    (Decay, 0.0),
    (NonNegativeInt, 0),
]


@pytest.mark.parametrize(("annotation", "value"), RIGHT)
def test_a_value_of_the_type_passes(annotation, value):
    assert list(complaints("x", value, annotation)) == []


WRONG = [
    (int, 0.5, "x=0.5: expected a whole number"),
    (int, True, "x=True: expected a whole number"),
    (float, "1", "x='1': expected a number"),
    (float, NAN, "x=nan: expected a finite number"),
    (float | None, -INF, "x=-inf: expected a finite number"),
    (bool, 1, "x=1: expected True or False"),
    (str, None, "x=None: expected a string"),
    (PositiveInt, 0, "x=0: expected at least 1"),
    (PositiveInt | None, -1, "x=-1: expected at least 1"),
    (Required[PositiveInt], 0, "x=0: expected at least 1"),
    (Required[int], "3", "x='3': expected a whole number"),
    (Positive, 0.0, "x=0.0: expected more than 0"),
    (NonNegative, -1e-9, "x=-1e-09: expected at least 0"),
    (Decay, 1.0, "x=1.0: expected at least 0 and less than 1"),
    (Share, 1.5, "x=1.5: expected at least 0 and at most 1"),
    (NonEmpty, "", "x='': expected a string that is not empty"),
    (tuple[float, float, float], (0.5, 0.5), "x has 2 values, expected 3"),
    (tuple[float, float], (0.5,), "x has 1 value, expected 2"),
    (tuple[float, float], (0.5, "a"), "x[1]='a': expected a number"),
    (tuple[float, ...], (0.5, NAN), "x[1]=nan: expected a finite number"),
    (tuple[NonEmpty, ...], ("a", ""), "x[1]='': expected a string that is not empty"),
    (tuple[str, ...], "abc", "x='abc': expected a tuple of strings"),
    (Sequence[str], "abc", "x='abc': expected a list or tuple of strings"),
    (dict[str, Positive], {"a": 0.0}, "x['a']=0.0: expected more than 0"),
    (dict[str, int], [1], "x=[1]: expected a dict from strings to whole numbers"),
    (Fit, "stretch", "x='stretch': expected one of PAD, CROP of Fit"),
    (Literal["a", "b"], "c", "x='c': expected one of 'a', 'b'"),
    (Callable[[int], int], 3, "x=3: expected a function"),
    (Part.Config, Part, "x is the class Part, expected a config of Part; write Part.default_c"),
    (Part.Config, Part.Config, "x is the class Part, expected a config of Part; write Part.defa"),
    (Part.Config, "part", "x='part': expected a config of Part; import the class and write CLASS"),
    (Part.Config, None, "x is None, expected a config of Part"),
    (Part.Config, OtherPart.default_config(), "x is a config of OtherPart, expected a config of P"),
    (InstantiableConfig | None, 3, "x is a int, expected a config or None"),
    (
        dict[str, Part.Config],
        [PART],
        "x is a list, expected a dict from strings to configs of Part",
    ),
    (list[Part.Config], PART, "x is a config of Part, expected a list of configs of Part"),
]


@pytest.mark.parametrize(("annotation", "value", "said"), WRONG)
def test_a_wrong_value_is_reported_with_path_value_and_expectation(annotation, value, said):
    found = list(complaints("x", value, annotation))
    assert len(found) == 1 and str(found[0]).startswith(said)


@pytest.mark.parametrize("bound", [-1, 0, 0.5, 7])
def test_a_range_matches_its_description(bound):
    for value in (bound - 0.25, bound, bound + 0.25):
        assert (value in Range(at_least=bound)) is (value >= bound)
        assert (value in Range(above=bound)) is (value > bound)
        assert (value in Range(at_most=bound)) is (value <= bound)
        assert (value in Range(below=bound)) is (value < bound)
        assert (value in Range(other_than=bound)) is (value != bound)


@config_class
class Holder(ConfigBase):
    parts: list[Part.Config] = []
    named: dict[str, Part.Config] = {}
    count: int = None  # type: ignore[assignment]


def test_wrong_values_at_any_depth_are_reported_together():
    cfg = Holder().set(parts=[PART, PART.clone(size=0)], named={"a": PART.clone(size="b")})
    with pytest.raises(ValueError) as error:
        check_values(cfg)
    assert str(error.value) == (
        "named['a'].size='b': expected a whole number; parts[1].size=0: expected at least 1"
    )


def test_defaults_are_not_checked():
    """Configs written for AXLearn contain `x: int = None`."""
    check_values(Holder())
    with pytest.raises(ValueError, match="count='a': expected a whole number"):
        check_values(Holder().set(count="a"))


def test_arguments_of_configured_functions_are_not_checked():
    check_values(config_for_function(lambda x: x).set(x=NAN))


def test_a_redeclared_field_keeps_its_range():
    class Child(Part):
        @config_class
        class Config(Part.Config):
            size: int = 5

    with pytest.raises(ValueError, match="size=0: expected at least 1"):
        check_values(Child.default_config().set(size=0))


def test_ranges_are_checked_on_instantiation_too():
    with pytest.raises(ValueError, match="^Part: size=0: expected at least 1$"):
        PART.clone(size=0).instantiate()


def test_ranges_are_not_part_of_texts():
    assert PART.debug_string().splitlines()[1:] == ["size: 1"]


# Values that are wrong for every field that now holds a value of the type.
_OTHER_KINDS: dict[type, tuple[Any, ...]] = {
    bool: ("true", 2, 0.5),
    int: ("3", 0.5, NAN),
    float: ("0.1", NAN, INF, -INF),
    str: (3, 0.5, ("a",)),
}


def _leaves(cfg: Any) -> list[tuple[ConfigBase, str, str]]:
    """Returns (holder, name, path) of the fields that hold a scalar."""
    found = []

    def enter(path, value, children):
        if isinstance(value, ConfigBase):
            found.extend(
                (value, name, f"{path}.{name}" if path else name)
                for name, content in value.items()
                if type(content) in _OTHER_KINDS
            )
        return children

    cfg.visit(lambda path, value: None, enter)
    return found


@pytest.mark.parametrize("make", [mm1_tiny, mm1_tiny_moe])
def test_no_field_accepts_a_value_of_another_type(make):
    """All fields are made wrong at once, because a check is slow; its error names each of them."""
    cfg = Experiment.resolve(make())
    leaves = [(*leaf, getattr(*leaf[:2])) for leaf in _leaves(cfg)]
    assert len(leaves) > 150
    for n in range(max(map(len, _OTHER_KINDS.values()))):
        chosen = [leaf for leaf in leaves if n < len(_OTHER_KINDS[type(leaf[3])])]
        for holder, name, _, before in chosen:
            setattr(holder, name, _OTHER_KINDS[type(before)][n])
        with pytest.raises(ValueError) as error:
            check_values(cfg)
        said = f"; {error.value}"
        for holder, name, path, before in chosen:
            assert f"; {path}=" in said, (path, getattr(holder, name))
            setattr(holder, name, before)
        check_values(cfg)


NEGATIVE = [
    "trainer.optimizer.learning_rate",
    "trainer.optimizer.weight_decay",
    "trainer.optimizer.b1",
    "trainer.optimizer.b2",
    "trainer.optimizer.eps",
    "trainer.optimizer.clip",
    "trainer.optimizer.final_fraction",
    "trainer.optimizer.ema_decay",
    "trainer.optimizer.warmup_steps",
    "trainer.optimizer.stable_steps",
    "trainer.optimizer.decay_steps",
    "trainer.loss.z_loss",
    "trainer.loss.load_balance_loss",
    "trainer.loss.router_z_loss",
    "trainer.loss.chunk_length",
    "trainer.max_steps",
    "trainer.summary_every_n_steps",
    "trainer.checkpointer.every_n_steps",
    "trainer.checkpointer.keep_last",
    "trainer.checkpointer.keep_every_n_steps",
    "trainer.checkpointer.timeout_seconds",
    "trainer.anomalies.max_grad_norm",
    "trainer.anomalies.spike_factor",
    "trainer.anomalies.max_in_a_row",
    "trainer.corruption.recompute_every_n_steps",
    "trainer.watchdog.hang_seconds",
    "trainer.progress.every_n_seconds",
    "trainer.profile.first_step",
    "trainer.profile.num_steps",
    "trainer.parallelism.gradient_accumulation",
    "model.decoder.num_layers",
    "model.decoder.head_dim",
    "model.decoder.norm.eps",
    "model.decoder.embedding.init_std",
    "model.decoder.stack.layer.attention.rotary.theta",
    "model.decoder.stack.layer.feed_forward.up.init_scale",
    "model.connector.hidden_dim",
    "model.connector.depth",
    "model.connector.positions.init_std",
    "model.connector.norm.eps",
    "model.vision_encoder.patch_size",
    "model.vision_encoder.positions.init_std",
    "model.vision_encoder.final_norm.eps",
    "input.batch_size",
    "input.max_sequence_length",
    "input.max_images",
    "input.image_group_rows",
    "input.images_per_row",
    "input.seed",
    "input.num_workers",
    "input.prefetch",
    "input.max_bad_fraction",
    "input.packing.num_bins",
    "input.packing.num_shards",
    "input.tokenizer.vocab_multiple",
    "input.streams.0.weight",
    "input.streams.0.corpora.0.weight",
    "input.streams.0.corpora.0.corpus.augmentation.rotate",
    "input.streams.0.corpora.0.corpus.source.num_records",
    "evals.held_out_loss.num_batches",
    "evals.digits_vqa.batch_size",
    "evals.digits_vqa.max_new_tokens",
    "evals.digits_vqa.num_examples",
    "evals.digits_vqa.num_few_shot_examples",
    "evals.digits_vqa.run.n",
]

BAD = [
    *((path, "-2", "expected ") for path in NEGATIVE),
    ("trainer.optimizer.learning_rate", "nan", "learning_rate=nan: expected a finite number"),
    ("trainer.optimizer.learning_rate", "inf", "learning_rate=inf: expected a finite number"),
    ("trainer.optimizer.b1", "1", "b1=1.0: expected at least 0 and less than 1"),
    ("trainer.optimizer.b2", "1.5", "b2=1.5: expected at least 0 and less than 1"),
    ("trainer.optimizer.ema_decay", "1", "ema_decay=1.0: expected"),
    ("trainer.optimizer.clip", "0", "clip=0.0: expected more than 0"),
    ("trainer.optimizer.eps", "0", "eps=0.0: expected more than 0"),
    ("trainer.checkpointer.best_metric", "", "best_metric='': expected a string that is not empty"),
    ("trainer.parallelism.model", "0", "parallelism.model=0: expected at least -1 and not 0"),
    ("trainer.seed", "99999999999999999999", "trainer.seed=99999999999999999999: expected"),
    ("model.vision_encoder.pixel_mean", "(0.5,0.5)", "pixel_mean has 2 values, expected 3"),
    ("model.vision_encoder.pixel_mean", "('a','b','c')", "pixel_mean[0]='a': expected a number"),
    ("model.vision_encoder.pixel_std", "(0.5,0.5,0.0)", "pixel_std[2]=0.0: expected more than 0"),
    ("model.vision_encoder.patch_embedding.axes", "('embed',)", "axes has 1 value, expected 2"),
    ("model.decoder.norm.eps", "0", "model.decoder.norm.eps=0.0: expected more than 0"),
    ("input.max_images", "0", "input.max_images=0: the model reads images"),
    ("input.max_bad_fraction", "2", "max_bad_fraction=2.0: expected at least 0 and at most 1"),
    ("evals.digits_vqa.stop_strings", "('a','')", "stop_strings[1]='': expected a string that is"),
    ("evals.digits_vqa.shots", "(0,-4)", "shots[1]=-4: expected at least 0"),
    ("evals.digits_vqa.shots", "(0.5,)", "shots[0]=0.5: expected a whole number"),
]


@pytest.mark.parametrize(("path", "text", "said"), BAD)
def test_impossible_values_are_rejected_when_a_config_is_resolved(path, text, said):
    cfg = mm1_tiny()
    with pytest.raises(ValueError) as error:
        Experiment.resolve(apply_overrides(cfg, {path: text}, types_from=cfg))
    assert said in str(error.value) and "\n" not in str(error.value)
    assert path.rpartition(".")[2] in str(error.value)
