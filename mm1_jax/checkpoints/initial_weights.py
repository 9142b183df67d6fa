"""Initial parameters of parts of a model, from weight folders or checkpoints of other runs.

    cfg.trainer.initial_weights = {
        "vision_encoder": InitialWeights.default_config().set(path="weights/dfn_vit_h14_378"),
        "decoder": InitialWeights.default_config().set(path="weights/qwen3_1p7b"),
    }

Parts without an entry, such as the connector here, are initialized randomly as usual. One entry
for the key "model" is the whole model, from a run or an import that has all parts:

    cfg.trainer.initial_weights = {"model": InitialWeights.default_config().set(path="runs/mm1_3b")}

A part and its checkpoint must have the same parameters with the same shapes. Config fields that
shapes do not reveal (an eps, the base of rotary positions, an activation) must equal those that the
weights were trained with. Intended differences are listed as rules (see `parameter_paths`).
Defaults that have changed since then (`stored_config.DEFAULTS`) keep the values that the weights
were trained with.

With `upcycle`, a sparse decoder starts from a dense one. With `resize_positions`, an encoder or a
connector starts from learned positions of another image size. Fine-tuning at a higher resolution
resizes both.
"""

import functools
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mm1_jax.checkpoints.weights_folder import (
    StoredParams,
    complaint,
    stored_config,
)
from mm1_jax.config import (
    REQUIRED,
    ConfigBase,
    Configurable,
    InstantiableConfig,
    Required,
    config_class,
    derived,
)
from mm1_jax.field_types import NonNegativeInt
from mm1_jax.layers.lora import is_adapter
from mm1_jax.layers.parameter_paths import picked
from mm1_jax.models.upcycling import DenseParameter, dense_parameter
from mm1_jax.models.vision_encoder import resized_positions
from mm1_jax.storage import contents_digest
from mm1_jax.stored_config import (
    Fields,
    as_stored,
    computational_fields,
    flat_fields,
    with_first_defaults,
)

# A trunk of AIM is trained with one attention pattern and then used with the other.
_PATTERNS_OF_AIM = {"Pattern.PREFIX", "Pattern.BIDIRECTIONAL"}
# End of the path of learned grid positions, in any module.
_POSITIONS = "positions/positions"
# Key of `trainer.initial_weights` for all parts at once.
MODEL = "model"


class InitialWeights(Configurable):
    """Source of the initial parameters of one part of the model."""

    @config_class
    class Config(Configurable.Config):
        # Folder made by `python -m mm1_jax convert_checkpoint`, or the output folder of a run;
        # relative to `data_dir`.
        path: Required[str] = REQUIRED
        data_dir: str | None = derived(None)  # `input.data_dir`
        step: NonNegativeInt | None = None  # checkpoint of a run; None is the newest
        # Path of this part in the checkpoint; None means the same path.
        source: str | None = None
        # Rules for parameters that are initialized randomly nevertheless (`fresh`), and for
        # parameters of the checkpoint that are ignored (`unused`).
        fresh: Sequence[str] = ()
        unused: Sequence[str] = ()
        # Initializes a sparse part from a dense checkpoint: every expert starts as a copy of the
        # feed-forward layer that it replaces, and routers are initialized randomly.
        upcycle: bool = False
        # Accepts learned positions of another grid size in an encoder or a connector; they are
        # resized bicubically, in the same way as the model resizes its own for larger images.
        resize_positions: bool = False
        # False allows differences in config fields that shapes do not reveal.
        check_config: bool = True

    def fingerprint(self) -> str:
        """Returns a digest of the checkpoint that does not depend on its path.

        The checkpoint may be missing, because a resuming run does not need it.
        """
        cfg = self._config
        try:
            stored = StoredParams(Path(cfg.data_dir or ".", cfg.path), cfg.step)
        except ValueError:
            return "not there"
        return contents_digest(stored.folder)

    def load(
        self, part: str, params: Mapping[str, jax.ShapeDtypeStruct], model: InstantiableConfig
    ) -> dict[str, jax.Array]:
        """Loads the parameters of a part onto their shardings, keyed by path.

        Args:
            part: Path of the part, such as "decoder"; "model" is all of it.
            params: Shapes and shardings of all parameters of the model by path.
            model: Config of the model.

        Raises:
            ValueError: The stored parameters do not fit. The message lists all differences.
        """
        cfg, field = self._config, f"trainer.initial_weights[{part!r}]"
        folder = Path(cfg.data_dir or ".", cfg.path)
        try:
            stored = StoredParams(folder, cfg.step)
        except ValueError as error:
            raise ValueError(f"{field}: {error}") from None
        if part == MODEL:
            if cfg.source is not None:
                raise ValueError(
                    f"{field}.source={cfg.source!r}: the whole model starts from the whole "
                    "checkpoint; leave it None, or name the part in place of 'model'"
                )
            part = ""
        source = part if cfg.source is None else cfg.source
        paths = _paths_inside(part, params)
        if not paths:
            parts = ", ".join(sorted({path.partition("/")[0] for path in params}))
            raise ValueError(f"{field}: the model has no {part!r}; its parts are {parts}")
        shapes = {path: tuple(leaf.shape) for path, leaf in params.items()}
        dense: dict[str, DenseParameter] = {}
        if cfg.upcycle:
            found = {path: dense_parameter(path, shapes) for path in paths}
            dense = {path: each for path, each in found.items() if each is not None}
            if not any(each.has_experts for each in dense.values()):
                raise ValueError(f"{field}.upcycle=True: the model has no experts in {part!r}")
            paths = set(dense)
        stored_paths = _paths_inside(source, stored.shapes)
        if cfg.fresh:
            paths = _without(paths, picked(cfg.fresh, sorted(paths), f"{field}.fresh"))
        if cfg.unused and stored_paths:
            unused = picked(cfg.unused, sorted(stored_paths), f"{field}.unused")
            stored_paths = _without(stored_paths, unused)
        expected = {path: dense[path].shape if path in dense else shapes[path] for path in paths}
        names = {
            path: source + (dense[path].path if path in dense else path).removeprefix(part)
            for path in paths
        }
        # Adapters are initialized unless the checkpoint has them.
        names = {
            path: name
            for path, name in names.items()
            if name in stored_paths or not is_adapter(path)
        }
        paths &= names.keys()
        misshapen = {
            path: stored_path
            for path, stored_path in names.items()
            if stored_path in stored_paths and stored.shapes[stored_path] != expected[path]
        }
        resized = {
            path: stored_path
            for path, stored_path in misshapen.items()
            if path.endswith(_POSITIONS) and _are_grids(stored.shapes[stored_path], expected[path])
        }
        if cfg.resize_positions:
            misshapen = {path: misshapen[path] for path in misshapen.keys() - resized.keys()}
        missing = sorted(set(names.values()) - stored_paths)
        complaints = [
            *complaint("missing in the checkpoint", missing),
            *complaint("missing in the model", sorted(stored_paths - set(names.values()))),
            *complaint(
                "of different shapes",
                [
                    f"{stored_path} is {list(stored.shapes[stored_path])} in the checkpoint and "
                    f"{list(expected[path])} in the model"
                    + ("; resize_positions=True resizes it" if path in resized else "")
                    for path, stored_path in sorted(misshapen.items())
                ],
            ),
        ]
        if any("/experts/" in name for name in missing) and not cfg.upcycle:
            complaints.append("  if that decoder is dense, upcycle=True copies it to the experts")
        if any(is_adapter(path) for path in stored_paths - set(names.values())):
            complaints.append("  the checkpoint has adapters: set model.lora as in its run")
        if cfg.check_config:
            names_of_parts = {part: source}
            if not part:
                names_of_parts = {name: name for name, _ in model.items()}
            for own, its_source in names_of_parts.items():
                made_for = stored_config(folder, its_source, cfg.step)
                if made_for is not None and own in model:
                    complaints += _field_differences(made_for, own, model, cfg.upcycle)
        if complaints:
            raise ValueError(
                f"{field}: the parameters in {folder} do not fit\n" + "\n".join(complaints)
            )
        dense = {path: dense[path] for path in paths & dense.keys() if dense[path].group_size}
        return _load_parameters(
            stored, {path: params[path] for path in paths}, names, dense, resized
        )


def raise_if_parts_overlap(initial_weights: Mapping[str, InitialWeights.Config]) -> None:
    """Raises ValueError if a part has an entry beside that of the whole model."""
    if MODEL in initial_weights and len(initial_weights) > 1:
        others = sorted(initial_weights.keys() - {MODEL})
        raise ValueError(
            f"trainer.initial_weights has 'model', which is all parts, and {others}; remove "
            "either. A part of the checkpoint that the model initializes itself goes into "
            "trainer.initial_weights['model'].fresh and .unused"
        )


def with_stored_defaults(
    model: InstantiableConfig, initial_weights: Mapping[str, InitialWeights.Config]
) -> Any:
    """Returns the model config with the defaults that its initial weights were trained with.

    If a default has changed since a part was trained, the part gets the old value. Fields set
    explicitly in `model` are kept.
    """
    model = model.clone()
    for part, weights in initial_weights.items():
        if not weights.check_config:
            continue
        sources = {part.partition("/")[0]: (weights.source or part).partition("/")[0]}
        if part == MODEL:
            sources = {name: name for name, _ in model.items()}
        folder = Path(weights.data_dir or ".", str(weights.path))
        for name, source in sources.items():
            cfg = getattr(model, name, None)
            if not isinstance(cfg, ConfigBase):
                continue
            stored = stored_config(folder, source, weights.step)
            if stored is not None:
                setattr(model, name, as_stored(stored, cfg, only_defaults=True))
    return model


def _load_parameters(
    stored: StoredParams,
    params: Mapping[str, jax.ShapeDtypeStruct],
    names: Mapping[str, str],
    dense: Mapping[str, DenseParameter],
    resized: Collection[str],
) -> dict[str, jax.Array]:
    """Loads parameters by path.

    Args:
        names: Path in the checkpoint of each parameter.
        dense: Parameters that are copied from layers of a dense decoder.
        resized: Paths of parameters that are positions of another grid size.
    """
    result = {
        path: _sharded_array(
            params[path],
            functools.partial(each.read, functools.partial(stored.read, names[path])),
        )
        for path, each in dense.items()
    }
    for path in resized:
        positions = jnp.asarray(stored.read(names[path]), jnp.float32)
        grid = np.asarray(resized_positions(positions, params[path].shape[0]))
        result[path] = _sharded_array(params[path], lambda shape, index, grid=grid: grid[index])
    alike = {path: stored_path for path, stored_path in names.items() if path not in result}
    if alike:
        loaded = stored.restore({stored_path: params[path] for path, stored_path in alike.items()})
        result |= {path: loaded[stored_path] for path, stored_path in alike.items()}
    return result


def _sharded_array(
    like: jax.ShapeDtypeStruct, values: Callable[[tuple[int, ...], Any], np.ndarray]
) -> jax.Array:
    """Creates a sharded array; `values` is called per device with the index of its shard."""
    shape = tuple(like.shape)
    assert like.sharding is not None
    return jax.make_array_from_callback(
        shape, like.sharding, lambda index: np.asarray(values(shape, index), like.dtype)
    )


def _are_grids(*shapes: tuple[int, ...]) -> bool:
    """Returns whether these are shapes of positions of square grids with the same model dim."""
    are_square = all(len(s) == 2 and math.isqrt(s[0]) ** 2 == s[0] for s in shapes)
    return are_square and len({shape[1] for shape in shapes}) == 1


def _paths_inside(part: str, paths: Collection[str]) -> set[str]:
    return {path for path in paths if not part or path == part or path.startswith(f"{part}/")}


def _without(paths: set[str], chosen: Collection[str]) -> set[str]:
    return paths.difference(chosen)


def _field_differences(
    stored: Fields, part: str, model: InstantiableConfig, is_upcycled: bool
) -> list[str]:
    """Lists config fields that affect the computation and differ from those of the weights."""
    cfg = getattr(model, part)
    if not isinstance(cfg, ConfigBase):
        return []
    made_for = computational_fields(with_first_defaults(stored, cfg))
    now = computational_fields(flat_fields(cfg))
    if is_upcycled and any(path.startswith("moe.") for path in now):
        # Experts are copies of the dense layer, so `experts_per_token` has no effect at first.
        activation = now.get("moe.experts.activation")
        now = {path: value for path, value in now.items() if not path.startswith("moe.")}
        now["stack.layer.feed_forward.activation"] = activation
    return complaint(
        "trained with other config fields",
        [
            f"model.{part}.{path} is {now.get(path)!r}, but was {made_for.get(path)!r}"
            for path in sorted(made_for.keys() | now.keys())
            if made_for.get(path) != now.get(path)
            and {made_for.get(path), now.get(path)} != _PATTERNS_OF_AIM
        ],
    )
