import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mm1_jax.evals.held_out_loss import HeldOutLoss
from mm1_jax.models.mm1 import MM1, MM1Output


class Table(MM1):
    """A model whose logits depend on the previous token only."""

    def __init__(self, table):
        self.table = nnx.Param(jnp.asarray(table, jnp.float32))

    def __call__(self, batch, *, dropless=False):
        assert dropless
        return MM1Output(self.table[...][batch.tokens], None)

    def logits(self, hidden):
        return hidden


@pytest.fixture
def model(input) -> Table:
    size = input.tokenizer.vocab_size
    return Table(np.random.default_rng(0).normal(size=(size, size)))


def held_out(input, num_batches=2) -> HeldOutLoss:
    return HeldOutLoss.default_config().set(num_batches=num_batches).instantiate(input=input)


def test_held_out_loss_is_the_mean_over_scored_targets_of_each_test_corpus(input, model):
    test = input.config.instantiate(split="test")
    iterator = test.iterator()
    losses: dict[str, list[float]] = {name: [] for name in test.corpus_names}
    log_probabilities = np.asarray(jax.nn.log_softmax(model.table[...]))
    for batch in (next(iterator), next(iterator)):
        for b, t in zip(*np.nonzero(batch.loss_mask), strict=True):
            loss = -log_probabilities[batch.tokens[b, t], batch.targets[b, t]]
            losses[test.corpus_names[batch.corpus_ids[b, t]]].append(loss)
    iterator.close()
    expected = {f"held_out_loss/0/{name}": np.mean(values) for name, values in losses.items()}
    assert set(expected) == {"held_out_loss/0/digits_captions", "held_out_loss/0/digits_questions"}
    assert held_out(input).run(model).metrics == pytest.approx(expected, rel=1e-5)


def test_held_out_loss_reads_the_same_batches_in_every_run(input, model):
    evaluator = held_out(input)
    assert evaluator.run(model).metrics == evaluator.run(model).metrics


def test_zero_batches_are_rejected(input):
    with pytest.raises(ValueError, match="num_batches=0"):
        held_out(input, num_batches=0)
