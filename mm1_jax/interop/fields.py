"""Typed fields of a foreign config, with the defaults of the class that wrote it.

A config may leave out fields that equal the defaults of its class, and a field changes the model
even if our reader does not know it. So each class has a table of defaults, and a field that nothing
reads must be at its default or be neutral (for training, generation or files).
"""

import json
import math
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple, NoReturn, TypeVar

T = TypeVar("T")

# Limits on array sizes and on counts, so that no table of tensors fills the memory.
_MOST = 2**31 - 1
MOST_LAYERS = 2000
MOST_EXPERTS = 2048

# Fields of any transformers config (versions 4 and 5) that change no output outside training. Older
# configs include generation parameters.
_EVERYWHERE = frozenset(
    (
        *("_attn_implementation", "_attn_implementation_autoset"),
        *("_attn_implementation_internal", "_commit_hash", "_experts_implementation_internal"),
        *("_flash_attn_2_enabled", "_name_or_path", "architectures", "attn_implementation"),
        *("bad_words_ids", "begin_suppress_tokens", "bos_token_id", "chunk_size_feed_forward"),
        *("cross_attention_hidden_size", "decoder_start_token_id", "diversity_penalty"),
        *("do_sample", "dtype", "early_stopping", "encoder_no_repeat_ngram_size", "eos_token_id"),
        *("experts_implementation", "exponential_decay_length_penalty", "finetuning_task"),
        *("forced_bos_token_id", "forced_eos_token_id", "gradient_checkpointing", "id2label"),
        *("initializer_factor", "initializer_range", "is_decoder", "label2id", "length_penalty"),
        *("max_length", "max_sequence_length", "min_length", "model_max_length", "model_type"),
        *("name_or_path", "neftune_noise_alpha", "no_repeat_ngram_size", "num_beam_groups"),
        *("num_beams", "num_labels", "num_return_sequences", "output_attentions"),
        *("output_hidden_states", "output_scores", "pad_token_id", "prefix", "problem_type"),
        *("remove_invalid_values", "repetition_penalty", "return_dict"),
        *("return_dict_in_generate", "sep_token_id", "suppress_tokens", "task_specific_params"),
        *("temperature", "tf_legacy_loss", "tie_encoder_decoder", "tokenizer_class", "top_k"),
        *("top_p", "torch_dtype", "torchscript", "transformers_version", "typical_p"),
        *("unsloth_fixed", "unsloth_version", "use_bfloat16", "use_cache"),
    )
)
_DTYPES = ("float64", "float32", "float16", "bfloat16")
# Fields of any config that change outputs, with the only supported values.
_FIXED = {
    "add_cross_attention": False,
    "is_encoder_decoder": False,
    "per_layer_config": None,
    "pruned_heads": {},
    "quantization_config": None,
}


class ForeignClass(NamedTuple):
    """A config class of another library.

    Attributes:
        name: Name of the class.
        defaults: Field -> default, for fields that change a model's outputs.
        neutral: Fields that change no output here.
    """

    name: str
    defaults: Mapping[str, Any]
    neutral: Collection[str] = ()

    def is_neutral(self, name: str) -> bool:
        return name in self.neutral or name in _EVERYWHERE


class Fields:
    """The fields of a config or of one of its sections; `given` holds those present.

    Methods that read a field raise ValueError if its value has the wrong type or is out of range.
    The message names file, field and value.
    """

    def __init__(
        self,
        given: Any,
        klass: ForeignClass,
        *,
        file: str = "config.json",
        path: str = "",
        strict: bool = True,
    ):
        """Stores the fields; counts none as read yet.

        Args:
            given: The JSON object.
            path: Prefix of field names in errors, such as "text_config.".
            strict: Whether `close` raises; False for configs that were read before.
        """
        self.file, self.path, self.klass, self._strict = file, path, klass, strict
        if not isinstance(given, Mapping):
            raise ValueError(f"{file}: {path.rstrip('.') or 'the file'} is not a JSON object")
        self.given = given
        self._read: set[str] = set()
        self._sections: dict[str, Fields] = {}

    def gives(self, name: str) -> bool:
        return name in self.given

    def has(self, name: str) -> bool:
        """Returns whether a field is present and not null."""
        return self.given.get(name) is not None

    def value(self, name: str) -> Any:
        """Returns a field as it is, or its default."""
        self._read.add(name)
        return self.given.get(name, self.klass.defaults.get(name))

    def integer(self, name: str, least: int = 1, most: int = _MOST) -> int:
        value = self.value(name)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            self.refuse(name, f"expected a whole number from {least} to {most}")
        return value

    def integer_or_none(self, name: str, least: int = 1) -> int | None:
        return None if self.value(name) is None else self.integer(name, least)

    def number(self, name: str, *, above: float = 0.0) -> float:
        value = self.value(name)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        # An integer of hundreds of digits does not fit into a float.
        if not is_number or not above < value < 1e38 or not math.isfinite(value):
            self.refuse(name, f"expected a number above {above:g}")
        return float(value)

    def flag(self, name: str) -> bool:
        value = self.value(name)
        if not isinstance(value, bool):
            self.refuse(name, "expected true or false")
        return value

    def one_of(self, name: str, known: Mapping[str, T]) -> T:
        value = self.value(name)
        if not isinstance(value, str) or value not in known:
            self.refuse(name, f"expected one of {', '.join(known)}")
        return known[value]

    def side(self, name: str) -> int:
        """Returns a field that is one number, or the same number for both sides of a square."""
        value = self.value(name)
        if isinstance(value, list | tuple):
            if len(value) != 2 or value[0] != value[1]:
                self.refuse(name, "only squares are supported")
            value = value[0]
        return self._with(name, value).integer(name)

    def item(self, name: str, index: int) -> "Fields":
        """Returns fields in which an element of a list stands in place of the list."""
        return self._with(name, self.value(name)[index])

    def section(self, name: str, klass: ForeignClass) -> "Fields":
        """Returns the fields of a field that is an object; a missing one has no fields."""
        if name in self._sections and self._sections[name].klass is klass:
            return self._sections[name]
        value = self.value(name)
        given = {} if value is None else value
        path = f"{self.path}{name}."
        child = Fields(given, klass, file=self.file, path=path, strict=self._strict)
        self._sections[name] = child
        return child

    def _with(self, name: str, value: Any) -> "Fields":
        return Fields({name: value}, self.klass, file=self.file, path=self.path)

    def refuse(self, name: str, expected: str) -> NoReturn:
        """Raises ValueError about the value of a field."""
        if name in self.given:
            value = _text(self.given[name])
        else:
            default = _text(self.klass.defaults.get(name))
            value = f"{default} (left out, the default of {self.klass.name})"
        raise ValueError(f"{self.file}: {self.path}{name}={value}: {expected}")

    def close(self) -> None:
        """Raises ValueError if a field that nothing has read changes the model."""
        if not self._strict:
            return
        fixed = {**_FIXED, **self.klass.defaults}
        for name, value in self.given.items():
            if name in ("dtype", "torch_dtype") and value is not None:
                if str(value).removeprefix("torch.") not in _DTYPES:
                    self.refuse(name, f"expected one of {', '.join(_DTYPES)}")
            elif name in self._read or self.klass.is_neutral(name):
                continue
            elif name in fixed:
                default = fixed[name]
                if value != default or isinstance(value, bool) is not isinstance(default, bool):
                    self.refuse(name, f"only {_text(default)}, the default, is supported")
            elif value not in (None, False, "", [], {}):
                self.refuse(
                    name,
                    f"{self.klass.name} has no such field, so its effect is unknown; remove it if "
                    "it has none",
                )
        for section in self._sections.values():
            section.close()

    def left_out(self) -> list[str]:
        """Returns sizes that were read but not given, with their defaults, as in errors."""
        mine = [
            f"{self.path}{name}={_text(self.klass.defaults[name])}"
            for name in self.klass.defaults
            if name in self._read
            and name not in self.given
            and type(self.klass.defaults[name]) is int
        ]
        return [
            *mine,
            *(name for section in self._sections.values() for name in section.left_out()),
        ]


def essential(given: Mapping[str, Any], klass: ForeignClass) -> dict[str, Any]:
    """Returns the fields of a config that change outputs."""
    return {name: value for name, value in given.items() if not klass.is_neutral(name)}


def _text(value: Any, most: int = 80) -> str:
    try:
        text = json.dumps(value)
    except (TypeError, ValueError, RecursionError):
        text = repr(type(value))
    return text if len(text) <= most else text[:most] + "..."
