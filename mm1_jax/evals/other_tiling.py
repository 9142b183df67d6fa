"""An evaluator with a tiling other than that of training, such as more tiles at test alone."""

import copy
from collections.abc import Collection

from mm1_jax.config import REQUIRED, Required, config_class
from mm1_jax.data.input import Input
from mm1_jax.data.tiling import Tiling
from mm1_jax.evals.asking import image_size
from mm1_jax.evals.evaluator import EvalResult, Evaluator, PromptInput
from mm1_jax.models.mm1 import MM1


class OtherTiling(Evaluator):
    """Runs an evaluator whose prompts show pictures in the views of its own tiling."""

    @config_class
    class Config(Evaluator.Config):
        evaluator: Required[Evaluator.Config] = REQUIRED
        # None shows one view of each picture.
        tiling: Tiling.Config | None = None

    def __init__(self, cfg: Config, *, input: Input | PromptInput):
        super().__init__(cfg, input=input)
        if input.image_transform is None:
            raise ValueError("evals: OtherTiling needs a model that reads images")
        builder = copy.copy(input.example_builder)
        builder.tiling = None
        if cfg.tiling is not None:
            side = image_size(input.image_transform)
            builder.tiling = cfg.tiling.set(tile_size=side).instantiate()
        parts = PromptInput(input.tokenizer, input.image_transform, builder)
        self._evaluator: Evaluator = cfg.evaluator.instantiate(input=parts)

    def fingerprint(self) -> str:
        return self._evaluator.fingerprint()

    def metric_names(self) -> Collection[str] | None:
        return self._evaluator.metric_names()

    def run(self, model: MM1) -> EvalResult:
        return self._evaluator.run(model)
