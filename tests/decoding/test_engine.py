"""The engine against `generate`, one request at a time."""

import functools
import itertools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn_model import tiny
from flax import nnx
from near_ties import assert_same_answers, logits_after

from mm1_jax.batch import Batch
from mm1_jax.decoding import engine as engine_module
from mm1_jax.decoding.engine import Engine, Request
from mm1_jax.decoding.generate import generate
from mm1_jax.decoding.options import DecodingOptions
from mm1_jax.decoding.sampling import Sampling
from mm1_jax.parallel.parallelism import Parallelism
from mm1_jax.parallel.sharding import AxisRules, parameter_shardings, use_mesh

PAD, BOS, EOS, IMAGE = 0, 1, 2, 3
NEW = 6
OPTIONS = DecodingOptions(NEW, eos=EOS, pad=PAD, forbidden=(BOS, IMAGE))
SHOWN = [BOS, *[IMAGE] * 4]


def prompt(tokens: list[int], length: int, colour: int = 0) -> Batch:
    """A batch of one row; if the tokens show a picture, it has a single color."""
    row, segment_ids = np.zeros((1, length), np.int32), np.zeros((1, length), np.int32)
    row[0, : len(tokens)], segment_ids[0, : len(tokens)] = tokens, 1
    return Batch(
        tokens=row,
        targets=np.zeros_like(row),
        loss_mask=np.zeros(row.shape, bool),
        positions=np.arange(length, dtype=np.int32)[None] * segment_ids,
        segment_ids=segment_ids,
        corpus_ids=segment_ids - 1,
        images=np.full((1, 8, 8, 3), colour, np.uint8),
        image_index=np.array([[0 if IMAGE in tokens else -1]], np.int32),
    )


TEXTS = [[5, 6], [7], [8, 9, 10, 11, 12], [13, 14, 15], [6], [9, 9], [5, 14, 7, 8]]


def prompts(length: int = 16) -> list[Batch]:
    return [
        prompt([*(SHOWN if i % 2 else [BOS]), *text], length, 40 * i)
        for i, text in enumerate(TEXTS)
    ]


def alone(batch: Batch, row_ids=None, **options) -> list[int]:
    """Returns the answer of `generate`, without padding."""
    found = generate(tiny(), batch, replace(OPTIONS, **options), row_ids=row_ids)
    tokens = np.asarray(found)[0].tolist()
    return tokens[: tokens.index(EOS) + 1] if EOS in tokens else tokens


def run(
    requests, num_slots=3, cache_length=32, steps_per_check=2, decode=None, **options
) -> list[list[int]]:
    engine = Engine(
        tiny(),
        replace(OPTIONS, **options),
        num_slots=num_slots,
        cache_length=cache_length,
        steps_per_check=steps_per_check,
        decode=decode,
    )
    answers = dict(engine.run(requests))
    assert sorted(answers) == list(range(len(requests)))
    return [answers[i] for i in range(len(requests))]


@functools.cache
def expected() -> list[list[int]]:
    return [alone(batch) for batch in prompts()]


def assert_answers(found: list[list[int]], wanted: list[list[int]], batches: list[Batch]) -> None:
    """Asserts equality up to near ties, as slots, meshes and prefixes change the programs."""
    found, wanted = ([row + [PAD] * (NEW - len(row)) for row in each] for each in (found, wanted))
    scores = [
        logits_after(tiny(), batch, [row]) for batch, row in zip(batches, wanted, strict=True)
    ]
    assert_same_answers(found, wanted, lambda row, step: scores[row](0, step))


def test_more_requests_than_slots_get_the_same_answers_as_single_requests():
    assert len({len(answer) for answer in expected()}) > 1
    assert_answers(run([Request(batch) for batch in prompts()]), expected(), prompts())


def test_sampled_tokens_depend_on_seed_and_row_id_alone():
    drawn = {"sampling": Sampling(1.0, top_k=8, top_p=0.9), "seed": 3}
    wanted = [
        alone(batch, row_ids=jnp.array([10 + i]), **drawn) for i, batch in enumerate(prompts())
    ]
    assert wanted != expected()
    requests = [Request(batch, row_id=10 + i) for i, batch in enumerate(prompts())]
    assert run(requests, **drawn) == wanted
    assert run(requests[::-1], num_slots=2, steps_per_check=3, **drawn) == wanted[::-1]


def test_a_stop_string_ends_an_answer_at_any_check_interval():
    whole = max(expected(), key=len)
    stop = "-".join(map(str, whole[1:3]))
    wanted = []
    for answer in expected():
        texts = ["-".join(map(str, answer[:i])) for i in range(len(answer) + 1)]
        number = next((i for i, text in enumerate(texts) if stop in text), len(answer))
        wanted.append(answer[:number])
    assert any(len(answer) < NEW and EOS not in answer for answer in wanted)
    for steps in (1, 4):
        answers = run(
            [Request(batch) for batch in prompts()],
            decode=lambda tokens: "-".join(map(str, tokens)),
            stop_strings=("", stop),  # an empty string never stops
            steps_per_check=steps,
        )
        assert answers == wanted


def test_a_shared_prefix_is_prefilled_once_and_changes_no_answer(monkeypatch):
    exemplar = [*SHOWN, 5, 6, 7]
    engine = Engine(tiny(), OPTIONS, num_slots=2, cache_length=32, steps_per_check=2)
    prefix = engine.prefix(prompt(exemplar, 16, colour=200))
    texts = [[*[IMAGE] * 4, 8], [*[IMAGE] * 4, 9, 10], [11, 12]]
    requests = [Request(prompt(text, 8, 70 * i), prefix) for i, text in enumerate(texts)]
    answers, batches = dict(engine.run(requests)), []
    for i, text in enumerate(texts):
        whole = prompt([*exemplar, *text], 32)
        images = np.stack([np.full((8, 8, 3), colour, np.uint8) for colour in (200, 70 * i)])
        index = np.array([[0, 1 if IMAGE in text else -1]], np.int32)
        batches.append(Batch(**(vars(whole) | {"images": images, "image_index": index})))
    wanted = [alone(batch) for batch in batches]
    assert_answers([answers[i] for i in range(len(texts))], wanted, batches)
    assert len(set(map(tuple, answers.values()))) > 1


def test_one_program_is_compiled_per_prompt_shape():
    for function in (engine_module._admit, engine_module._advance):
        function.clear_cache()
    requests = [
        Request(prompt([BOS, *text[:3]], length))
        for text, length in itertools.product(TEXTS, (8, 16))
    ]
    run(requests)
    run(requests[::-1])
    assert engine_module._admit._cache_size() == 2
    assert engine_module._advance._cache_size() == 1


def test_the_cache_is_donated():
    engine = Engine(tiny(), OPTIONS, num_slots=2, cache_length=32)
    state = engine._empty()
    after, _ = engine._admit(state, 0, Request(prompts()[0]))
    assert state.caches[0].keys.is_deleted() and not after.caches[0].keys.is_deleted()


def test_answers_on_a_mesh_equal_those_of_one_device_and_the_cache_is_sharded():
    mesh = Parallelism.default_config().set(data=2, fsdp=2, model=2).instantiate().mesh()
    graphdef, params = nnx.split(tiny(), nnx.Param)
    params = jax.device_put(params, parameter_shardings(params, mesh, AxisRules()))
    with use_mesh(mesh):
        engine = Engine(
            nnx.merge(graphdef, params), OPTIONS, num_slots=4, cache_length=32, steps_per_check=2
        )
        answers = dict(engine.run([Request(batch) for batch in prompts()]))
        cache = engine._empty().caches[0]
    assert_answers([answers[i] for i in range(len(TEXTS))], expected(), prompts())
    # 4 rows over data and fsdp, 2 kv heads over model.
    assert cache.keys.sharding.shard_shape(cache.keys.shape) == (1, 1, 32, 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_slots": 0}, "num_slots=0"),
        ({"steps_per_check": 0}, "steps_per_check=0"),
        ({"cache_length": 6}, "cache_length=6: must be above max_new_tokens=6"),
        ({"cache_dtype": "float16"}, "cache_dtype='float16'"),
        ({"stop_strings": ("a",)}, "need decode"),
    ],
)
def test_invalid_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        run([], **options)


def test_invalid_prompts_are_named():
    with pytest.raises(ValueError, match="above cache_length=9"):
        run([Request(prompt([BOS] * 5, 8))], cache_length=9)
    with pytest.raises(ValueError, match="the row is empty"):
        run([Request(prompt([], 8))])
