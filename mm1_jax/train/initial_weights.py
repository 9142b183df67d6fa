"""The initial parameters of parts of a model, from folders of weights or checkpoints of other runs.

    cfg.trainer.initial_weights = {
        "vision_encoder": InitialWeights.default_config().set(path="weights/dfn_vit_h14_378"),
        "decoder": InitialWeights.default_config().set(path="weights/qwen3_1p7b"),
    }

What no entry is about, such as the connector here, is drawn as ever. Every parameter of a part
must be in its checkpoint, in the same shape, and the checkpoint may have no other ones there;
fields that shapes do not show (an eps, the base of rotary positions, an activation) must be as the
weights were made for. What is to differ is named by a rule (see `parameter_paths`).
"""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from mm1_jax.config import REQUIRED, Configurable, InstantiableConfig, Required, config_class
from mm1_jax.train.parameter_paths import picked
from mm1_jax.weights_folder import StoredParams, complaint

# Fields that decide what a part computes, and that no shape shows.
_NOT_IN_SHAPES = (
    *("activation", "eps", "experts_per_token", "factor", "high_freq_factor", "low_freq_factor"),
    *("original_max_position_embeddings", "patch_size", "pattern", "theta"),
)
_COLOURS = ("pixel_mean", "pixel_std")


class InitialWeights(Configurable):
    """Where the initial parameters of one part come from."""

    @config_class
    class Config(Configurable.Config):
        # From `data_dir` on: a folder of tools/convert_checkpoint.py, or the outputs of a run.
        path: Required[str] = REQUIRED
        data_dir: str | None = None  # Set by the experiment, from `input.data_dir`.
        step: int | None = None  # Which checkpoint of a run; None: the newest.
        # Where the checkpoint has what this part has; None: under the same path.
        source: str | None = None
        # Rules: parameters that are drawn all the same, and what of the checkpoint is left aside.
        fresh: Sequence[str] = ()
        unused: Sequence[str] = ()
        # Off: fields that shapes do not show may differ from what the weights were made for.
        check_config: bool = True

    def load(
        self, part: str, params: Mapping[str, jax.ShapeDtypeStruct], model: InstantiableConfig
    ) -> dict[str, jax.Array]:
        """The parameters of a part, onto their shardings, by path.

        Args:
            part: Path of what holds them: "decoder".
            params: All parameters of the model by path.
            model: Its config.

        Raises:
            ValueError: They do not fit; all names are listed.
        """
        cfg, field = self._config, f"trainer.initial_weights[{part!r}]"
        folder = Path(cfg.data_dir or ".", cfg.path)
        try:
            stored = StoredParams(folder, cfg.step)
        except ValueError as error:
            raise ValueError(f"{field}: {error}") from None
        source = part if cfg.source is None else cfg.source
        own = _inside(part, params)
        if not own:
            parts = ", ".join(sorted({path.partition("/")[0] for path in params}))
            raise ValueError(f"{field}: the model has no {part!r}; its parts are {parts}")
        there = _inside(source, stored.shapes)
        if cfg.fresh:
            own = _without(own, picked(cfg.fresh, sorted(own), f"{field}.fresh"))
        if cfg.unused and there:
            there = _without(there, picked(cfg.unused, sorted(there), f"{field}.unused"))
        names = {path: source + path.removeprefix(part) for path in own}
        complaints = [
            *complaint("missing there", [names[p] for p in names if names[p] not in there]),
            *complaint("without a place in the model", sorted(there - set(names.values()))),
            *complaint(
                "misshapen",
                [
                    f"{theirs} is {list(stored.shapes[theirs])}, and the model's "
                    f"{list(params[path].shape)}"
                    for path, theirs in names.items()
                    if theirs in there and stored.shapes[theirs] != params[path].shape
                ],
            ),
        ]
        if cfg.check_config and stored.description is not None:
            complaints += _differences(stored.description, source, part, model)
        if complaints:
            raise ValueError(
                f"{field}: the parameters in {folder} do not fit\n" + "\n".join(complaints)
            )
        loaded = stored.restore({theirs: params[path] for path, theirs in names.items()})
        return {path: loaded[theirs] for path, theirs in names.items()}


def _inside(part: str, paths: Collection[str]) -> set[str]:
    return {path for path in paths if path == part or path.startswith(f"{part}/")}


def _without(paths: set[str], chosen: Collection[str]) -> set[str]:
    return paths.difference(chosen)


def _differences(
    description: Mapping[str, Any], source: str, part: str, model: InstantiableConfig
) -> list[str]:
    """The fields that decide what is computed, and differ from those the weights were made for."""
    texts = description["parts"].get(source)
    if texts is None or part not in model:
        return []
    made_for, now = _fields(texts), _fields(getattr(model, part).debug_string().splitlines())
    return complaint(
        "made for other fields",
        [
            f"model.{part}.{path} is {now.get(path)}, and was {made_for.get(path)}"
            for path in sorted(made_for.keys() | now.keys())
            if made_for.get(path) != now.get(path)
        ],
    )


def _fields(lines: Sequence[str]) -> dict[str, str]:
    fields = dict(line.split(": ", 1) for line in lines)
    return {
        path: value
        for path, value in fields.items()
        if path.rpartition(".")[2].startswith(_COLOURS) or path.rpartition(".")[2] in _NOT_IN_SHAPES
    }
