"""Initial adapters of a run, from a folder that was imported from PEFT.

    cfg.trainer.initial_adapters = InitialAdapters.default_config().set(path="weights/adapters")

They are loaded on top of `trainer.initial_weights`, with everything that was trained beside them,
such as a connector. The run must adapt and train the same layers, with the same scales.
"""

import math
from collections.abc import Mapping
from pathlib import Path

import jax
from flax import nnx

from mm1_jax.checkpoints.weights_folder import ADAPTER_SCALES, StoredParams, complaint
from mm1_jax.config import (
    REQUIRED,
    Configurable,
    InstantiableConfig,
    Required,
    config_class,
    derived,
)
from mm1_jax.layers.lora import adapters_of, is_adapter
from mm1_jax.storage import contents_digest

_FIELD = "trainer.initial_adapters"


class InitialAdapters(Configurable):
    """Source of the initial adapters of a model with `lora`."""

    @config_class
    class Config(Configurable.Config):
        # Folder made by `python -m mm1_jax convert_checkpoint import --base=...`; relative to
        # `data_dir`.
        path: Required[str] = REQUIRED
        data_dir: str | None = derived(None)  # `input.data_dir`

    def fingerprint(self) -> str:
        """Returns a digest of the folder, which may be missing, as resuming does not need it."""
        try:
            return contents_digest(self._stored().folder)
        except ValueError:
            return "not there"

    def load(
        self, params: Mapping[str, jax.ShapeDtypeStruct], model: InstantiableConfig
    ) -> dict[str, jax.Array]:
        """Loads all parameters of the folder onto their shardings, keyed by path.

        Args:
            params: Shapes and shardings of all parameters of the model by path.
            model: Config of the model.

        Raises:
            ValueError: The folder does not fit. The message lists all differences.
        """
        stored = self._stored()
        description = stored.description or {}
        if ADAPTER_SCALES not in description:
            raise ValueError(
                f"{_FIELD}: {self._folder()} holds no adapters from PEFT; to start from a run with "
                "adapters, name it in trainer.initial_weights"
            )
        scales = description[ADAPTER_SCALES]
        module = nnx.eval_shape(lambda: model.instantiate(rngs=nnx.Rngs(params=0)))
        here = {path: adapter.scale for path, adapter in adapters_of(module).items()}
        shapes = stored.shapes
        adapters = {path for path in params if is_adapter(path)}
        complaints = [
            *complaint("missing in the folder", sorted(adapters - shapes.keys())),
            *complaint("missing in the model", sorted(shapes.keys() - params.keys())),
            *complaint(
                "of different shapes",
                [
                    f"{path} is {list(shape)} in the folder and {list(params[path].shape)} here"
                    for path, shape in sorted(shapes.items())
                    if path in params and shape != tuple(params[path].shape)
                ],
            ),
            *complaint(
                "of different scales (alpha / rank)",
                [
                    f"{path} has {scale:g} in the folder and {here[path]:g} here"
                    for path, scale in sorted(scales.items())
                    if path in here and not math.isclose(scale, here[path])
                ],
            ),
        ]
        if complaints:
            text = "\n".join(complaints)
            raise ValueError(f"{_FIELD}: the adapters in {self._folder()} do not fit\n{text}")
        return stored.restore({path: params[path] for path in shapes})

    def _folder(self) -> Path:
        return Path(self._config.data_dir or ".", self._config.path)

    def _stored(self) -> StoredParams:
        try:
            return StoredParams(self._folder())
        except ValueError as error:
            raise ValueError(f"{_FIELD}: {error}") from None
