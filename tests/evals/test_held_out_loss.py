import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh

from experiments import tiny_encoders
from mm1_jax.evals.held_out_loss import HeldOutLoss
from mm1_jax.experiment import Experiment
from mm1_jax.models.mm1 import MM1, MM1Output
from mm1_jax.parallel.sharding import use_mesh
from mm1_jax.train.loss import Loss
from mm1_jax.train.metrics import add, divide
from mm1_jax.train.next_token import NextToken


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
    objective = NextToken.of(MM1.default_config(), Loss.default_config(), input.config)
    cfg = HeldOutLoss.default_config().set(num_batches=num_batches)
    return cfg.instantiate(input=input, objective=objective)


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


@pytest.mark.parametrize("name", ["clip_tiny", "aim_tiny"])
def test_an_encoder_has_the_loss_of_training_on_all_patches(name, with_few_records):
    cfg = Experiment.small(tiny_encoders.named_configs()[name]())
    with_few_records(cfg.input.streams)
    cfg = Experiment.resolve(cfg)
    objective, input = Experiment.objective(cfg), cfg.input.instantiate()
    model = cfg.model.instantiate(rngs=nnx.Rngs(params=0))
    graphdef, params = nnx.split(model)
    loss = jax.jit(objective.loss_function(graphdef))
    test = input.config.instantiate(split="test")
    iterator = test.iterator()
    parts = [loss(params, {}, next(iterator))[1] for _ in range(2)]
    iterator.close()
    means = divide(add(*parts))["corpus_loss"]
    expected = {
        f"held_out_loss/0/{corpus}": mean
        for corpus, mean in zip(test.corpus_names, means, strict=True)
    }
    if name == "clip_tiny":
        cfg.model.patch_dropout = 0.5
        model = cfg.model.instantiate(rngs=nnx.Rngs(params=0))
    evaluator = HeldOutLoss.default_config().set(num_batches=2)
    evaluator = evaluator.instantiate(input=input, objective=objective)
    assert evaluator.run(model).metrics == pytest.approx(expected, rel=1e-5)
    with use_mesh(Mesh(np.array(jax.devices()), ("data",))):
        assert evaluator.run(model).metrics == pytest.approx(expected, rel=1e-5)
