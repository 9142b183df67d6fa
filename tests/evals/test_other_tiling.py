"""An evaluator under another tiling shows pictures in those views, and changes no other one."""

import numpy as np
import pytest

from mm1_jax.batch import Document, Image, Text
from mm1_jax.config import config_class
from mm1_jax.data.examples import ExampleBuilder
from mm1_jax.data.grid_rules import FixedGrid
from mm1_jax.data.images import ImageTransform
from mm1_jax.data.tiling import Tiling
from mm1_jax.data.tokenizers.sentencepiece import Tokenizer
from mm1_jax.evals.evaluator import EvalResult, Evaluator, PromptInput
from mm1_jax.evals.other_tiling import OtherTiling
from mm1_jax.models.mm1 import MM1

DOCUMENT = Document((Image(np.zeros((64, 64, 3), np.uint8)), Text("what?", scored=False)))


class CountViews(Evaluator):
    """Reports the views of a prompt."""

    @config_class
    class Config(Evaluator.Config):
        pass

    def __init__(self, cfg, *, input):
        super().__init__(cfg, input=input)
        self._input = input

    def metric_names(self):
        return ["views"]

    def run(self, model):
        prompt = self._input.example_builder.without_limits().prompt(DOCUMENT)
        return EvalResult({"views": float(len(prompt.images))}, [])


def _grid(side):
    return Tiling.default_config().set(rule=FixedGrid.default_config().set(columns=side, rows=side))


@pytest.mark.parametrize(("side", "views"), [(None, 1), (2, 5), (3, 10)])
def test_prompts_have_the_views_of_the_evaluators_own_tiling(side, views):
    tokenizer = Tokenizer.default_config().instantiate()
    trained = _grid(2).set(tile_size=32).instantiate()
    builder = ExampleBuilder(
        tokenizer, num_image_tokens=4, max_sequence_length=64, max_images=8, tiling=trained
    )
    transform = ImageTransform.default_config().set(image_size=32).instantiate()
    cfg = OtherTiling.default_config().set(evaluator=CountViews.default_config())
    evaluator = cfg.set(tiling=None if side is None else _grid(side)).instantiate(
        input=PromptInput(tokenizer, transform, builder)
    )
    assert evaluator.metric_names() == ["views"]
    assert evaluator.run(object.__new__(MM1)).metrics == {"views": views}
    assert builder.tiling is trained
