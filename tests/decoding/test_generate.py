import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn_model import drawn_model
from flax import nnx
from near_ties import assert_same_answers, is_near_tie, logits_after

from mm1_jax.batch import Batch
from mm1_jax.decoding.generate import generate
from mm1_jax.decoding.options import DecodingOptions
from mm1_jax.layers.moe import Capacity, MoE
from mm1_jax.models.connectors.average_pooling import AveragePooling
from mm1_jax.models.decoder import Decoder
from mm1_jax.models.mm1 import MM1
from mm1_jax.models.vision_encoder import VisionEncoder
from mm1_jax.parallel.parallelism import Parallelism
from mm1_jax.parallel.sharding import AxisRules, parameter_shardings, use_mesh

PAD, BOS, EOS, IMAGE, VOCAB = 0, 1, 2, 3, 16


class Chain(MM1):
    """A model whose logits are a table's row of the last token; records its decoding steps."""

    def __init__(self, table):
        self.table = nnx.Param(jnp.asarray(table, jnp.float32))

    def for_decoding(self):
        return self

    def init_caches(self, batch_size, num_slots, dtype=None):
        return ()

    def prefill(self, batch, caches):
        return jax.nn.one_hot(batch.tokens, VOCAB), caches

    def decode_step(self, tokens, positions, caches):
        jax.debug.callback(steps_taken.append, positions)
        return jax.nn.one_hot(tokens[:, None], VOCAB), caches

    def logits(self, hidden):
        return hidden @ self.table[...]


steps_taken: list = []


@pytest.fixture(autouse=True)
def _no_steps_yet():
    steps_taken.clear()


def chain(successors: dict[int, int]) -> Chain:
    table = np.zeros((VOCAB, VOCAB))
    for token, successor in successors.items():
        table[token, successor] = 1
    return Chain(table)


def prompts(*rows: list[int], length: int = 8, num_images: int = 1, rng=None) -> Batch:
    shape = (len(rows), length)
    tokens, segment_ids = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    images = np.zeros((len(rows) * num_images, 8, 8, 3), np.uint8)
    if rng is not None:
        images = rng.integers(0, 256, images.shape, np.uint8)
    for b, row in enumerate(rows):
        tokens[b, : len(row)], segment_ids[b, : len(row)] = row, 1
    return Batch(
        tokens=tokens,
        targets=np.zeros(shape, np.int32),
        loss_mask=np.zeros(shape, bool),
        positions=np.arange(length, dtype=np.int32)[None] * segment_ids,
        segment_ids=segment_ids,
        corpus_ids=segment_ids - 1,
        images=images,
        image_index=np.arange(len(images), dtype=np.int32).reshape(len(rows), num_images),
    )


def answer(model, batch, max_new_tokens=6, forbidden=(BOS, IMAGE)) -> list[list[int]]:
    options = DecodingOptions(max_new_tokens, eos=EOS, pad=PAD, forbidden=forbidden)
    tokens = generate(model, batch, options)
    assert tokens.shape == (len(batch.tokens), max_new_tokens) and tokens.dtype == jnp.int32
    return np.asarray(tokens).tolist()


def test_an_answer_follows_the_last_token_of_its_prompt_and_is_padded_after_its_end():
    model = chain({5: 6, 6: 7, 7: EOS, 8: EOS, 9: 10, 10: 9})
    batch = prompts([BOS, 5], [BOS, 5, 5, 8], [BOS, 8, 9])
    assert answer(model, batch) == [
        [6, 7, EOS, PAD, PAD, PAD],
        [EOS, PAD, PAD, PAD, PAD, PAD],
        [10, 9, 10, 9, 10, 9],
    ]


@pytest.mark.parametrize("forbidden", [PAD, BOS, IMAGE, 14, 15])
def test_a_forbidden_token_is_not_chosen_however_likely(forbidden):
    table = np.zeros((VOCAB, VOCAB))
    table[:, forbidden], table[:, 11] = 100, 1
    others = {BOS, IMAGE, 14, 15}
    assert answer(Chain(table), prompts([BOS, 5]), forbidden=tuple(others)) == [[11] * 6]


def test_decoding_stops_when_every_row_has_ended():
    model = chain({5: 6, 6: 7, 7: EOS, 8: EOS})
    answer(model, prompts([BOS, 5], [BOS, 5, 8]), max_new_tokens=50)
    jax.effects_barrier()
    # The first token comes out of the prompt; two more steps give 7 and eos.
    assert [list(positions) for positions in steps_taken] == [[2, 3], [3, 4]]


def test_an_empty_row_has_no_answer_and_does_not_prolong_decoding():
    model = chain({5: EOS, PAD: 7, 7: 7})
    assert answer(model, prompts([BOS, 5], [])) == [[EOS] + [PAD] * 5, [PAD] * 6]
    jax.effects_barrier()
    assert steps_taken == []


def test_equal_shapes_are_compiled_once():
    traces = []

    class Counted(Chain):
        def prefill(self, batch, caches):
            traces.append(batch.tokens.shape)
            return super().prefill(batch, caches)

    model = Counted(np.eye(VOCAB))
    for rows in ([BOS, 5], [BOS, 6, 7], [BOS]):
        answer(model, prompts(rows))
    answer(Counted(2 * np.eye(VOCAB)), prompts([BOS, 5]))
    assert traces == [(1, 8)]


def test_another_mesh_or_other_axis_rules_are_recompiled():
    traces = []

    class Counted(Chain):
        def prefill(self, batch, caches):
            traces.append(batch.tokens.shape)
            return super().prefill(batch, caches)

    model, batch = Counted(np.eye(VOCAB)), prompts([BOS, 5])
    mesh = Parallelism.default_config().set(data=8).instantiate().mesh()
    for rules in (AxisRules(), AxisRules(batch=()), AxisRules()):
        with use_mesh(mesh, rules):
            answer(model, batch)
    assert len(traces) == 2
    answer(model, batch)
    assert len(traces) == 3


def test_invalid_options_are_rejected():
    with pytest.raises(ValueError, match="max_new_tokens=0"):
        answer(chain({}), prompts([BOS]), max_new_tokens=0)
    with pytest.raises(ValueError, match="eos=2 is forbidden"):
        answer(chain({}), prompts([BOS]), forbidden=(EOS,))


@functools.cache
def tiny(moe: bool, dtype: str = "float32") -> MM1:
    """A model with parameters from NumPy, which avoids compiling every initializer."""
    decoder = Decoder.default_config().set(
        vocab_size=VOCAB, model_dim=16, num_layers=2, num_heads=4, num_kv_heads=2, hidden_dim=24
    )
    if moe:
        # So little capacity that any decoding that is not dropless differs at once.
        capacity = Capacity.default_config().set(capacity_factor=0.5)
        decoder.moe = MoE.default_config().set(num_experts=4, dispatch=capacity)
        decoder.moe_every = 2
    encoder = VisionEncoder.default_config().set(
        image_size=8, patch_size=4, model_dim=8, num_layers=1, num_heads=2, hidden_dim=16
    )
    cfg = MM1.default_config().set(
        vision_encoder=encoder,
        connector=AveragePooling.default_config().set(num_image_tokens=4),
        decoder=decoder,
        image_token=IMAGE,
        dtype=dtype,
    )
    return drawn_model(cfg)


def shown(*text: int) -> list[int]:
    return [BOS, IMAGE, IMAGE, IMAGE, IMAGE, *text]


@pytest.mark.parametrize("moe", [False, True])
def test_cached_decoding_equals_the_argmax_of_full_forward_passes(moe):
    model, rng = tiny(moe), np.random.default_rng(0)
    batch = prompts(shown(5, 6, 7), [BOS, 9], shown(8), shown(11, 5), length=16, rng=rng)
    answers = np.asarray(answer(model, batch))
    lengths = (batch.segment_ids > 0).sum(axis=1)
    forward = jax.jit(lambda model, batch: model.logits(model(batch, dropless=True).hidden))
    rows, compared = np.arange(4), 0
    for step in range(6):
        logits = np.array(forward(model, batch))[rows, lengths - 1]
        logits[:, [PAD, BOS, IMAGE]] = -np.inf
        open_rows = rows[~np.any(answers[:, :step] == EOS, axis=1)]
        for row in open_rows:
            assert is_near_tie(logits[row], answers[row, step], logits[row].argmax())
        compared += len(open_rows)
        tokens, segment_ids = batch.tokens.copy(), batch.segment_ids.copy()
        tokens[rows, lengths], segment_ids[rows, lengths] = answers[:, step], 1
        positions = np.arange(16, dtype=np.int32)[None] * segment_ids
        batch = dataclasses.replace(
            batch, tokens=tokens, segment_ids=segment_ids, positions=positions
        )
        lengths = lengths + 1
    assert compared >= 8
    assert len({tuple(row) for row in answers}) >= 3


def test_prompts_of_different_lengths_are_answered_as_if_alone():
    model, rng = tiny(moe=True), np.random.default_rng(1)
    rows = [shown(5, 6, 7), shown(8), shown(9, 10, 11, 12, 13, 14, 15, 5), [BOS, 6]]
    together = prompts(*rows, length=16, rng=rng)
    answers, alone = answer(model, together), []
    for b, row in enumerate(rows):
        others = [row if i == b else [] for i in range(4)]
        batch = dataclasses.replace(prompts(*others, length=16), images=together.images)
        alone.append(answer(model, batch)[b])
    assert_same_answers(alone, answers, logits_after(model, together, answers))
    # The length of the padding does not matter, either.
    wider = dataclasses.replace(prompts(*rows, length=32), images=together.images)
    assert_same_answers(answer(model, wider), answers, logits_after(model, together, answers))


def test_the_answer_depends_on_the_picture_in_the_prompt():
    model, rng = tiny(moe=False), np.random.default_rng(2)
    batch = prompts(*[shown(5, 6)] * 4, length=16)
    # Pictures of a single color, because averages of noise are all alike.
    colours = rng.integers(0, 256, (4, 1, 1, 3), np.uint8)
    batch = dataclasses.replace(batch, images=np.broadcast_to(colours, batch.images.shape))
    answers = answer(model, batch)
    assert len({tuple(row) for row in answers}) > 1


def test_answers_on_a_mesh_equal_those_of_one_device():
    model, rng = tiny(moe=False), np.random.default_rng(3)
    batch = prompts(*[shown(5 + i) for i in range(4)], length=16, rng=rng)
    expected = answer(model, batch)
    mesh = Parallelism.default_config().set(data=2, fsdp=2, model=2).instantiate().mesh()
    graphdef, params = nnx.split(model, nnx.Param)
    params = jax.device_put(params, parameter_shardings(params, mesh, AxisRules()))
    with use_mesh(mesh):
        found = answer(nnx.merge(graphdef, params), batch)
    assert_same_answers(found, expected, logits_after(model, batch, expected))


# Tolerances are shares of the logits' standard deviation. The default cache is float32.
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("float32", 0), ("bfloat16", 0.02), ("int8", 0.05)]
)
def test_logits_with_a_cache_of_fewer_bits_are_near_those_with_the_full_one(dtype, tolerance):
    model, rng = tiny(moe=False), np.random.default_rng(5)
    batch = prompts(shown(5, 6, 7), [BOS, 9, 4, 8], length=10, rng=rng)
    lengths = jnp.asarray((batch.segment_ids > 0).sum(axis=1))

    @functools.partial(jax.jit, static_argnums=2)
    def step_logits(model, batch, dtype):
        caches = model.init_caches(2, 12, dtype)
        assert caches[0].keys.dtype == (dtype or "float32")
        _, caches = model.prefill(batch, caches)
        logits = []
        for step, token in enumerate((11, 12)):
            tokens = jnp.full(2, token)
            hidden, caches = model.decode_step(tokens, lengths + step, caches)
            logits.append(model.logits(hidden)[:, 0])
        return jnp.stack(logits)

    full, fewer = step_logits(model, batch, None), step_logits(model, batch, dtype)
    np.testing.assert_allclose(fewer, full, rtol=0, atol=tolerance * full.std())


def test_bfloat16_decodes_to_allowed_tokens():
    model, rng = tiny(moe=False, dtype="bfloat16"), np.random.default_rng(4)
    answers = answer(model, prompts(shown(5), shown(6), length=8, rng=rng))
    assert all(0 <= token < VOCAB and token not in (BOS, IMAGE) for row in answers for token in row)
