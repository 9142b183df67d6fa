"""Likelihoods of continuations, compared with transformers and with the full logits."""

import functools
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from drawn_model import drawn_model
from flax import nnx
from near_ties import is_near_tie
from transformers import LlamaConfig, LlamaForCausalLM

from mm1_jax.batch import Batch, Document, Image, Text
from mm1_jax.checkpoints.weights_folder import StoredParams
from mm1_jax.data.examples import ExampleBuilder
from mm1_jax.data.rows import RowShape, assemble
from mm1_jax.data.tokenizers.sentencepiece import Tokenizer
from mm1_jax.evals import likelihood
from mm1_jax.evals.likelihood import LikelihoodRequest, LikelihoodScorer, encode_pair
from mm1_jax.interop.exporter import parts_of_weights
from mm1_jax.interop.importer import import_checkpoint
from mm1_jax.layers.moe import Capacity, MoE
from mm1_jax.models.connectors.average_pooling import AveragePooling
from mm1_jax.models.decoder import Decoder
from mm1_jax.models.mm1 import MM1
from mm1_jax.models.vision_encoder import VisionEncoder
from mm1_jax.parallel.parallelism import Parallelism
from mm1_jax.parallel.sharding import AxisRules, parameter_shardings, use_mesh

NUM_IMAGE_TOKENS = 4


@functools.cache
def tokenizer() -> Tokenizer:
    return Tokenizer.default_config().instantiate()


def text_request(prompt: str, continuation: str) -> LikelihoodRequest:
    return LikelihoodRequest(Document((Text(prompt, scored=False),)), continuation)


TEXTS = [
    text_request("Question: what digit is this?\nAnswer:", " it is a three"),
    text_request("", "a red circle"),
    text_request("a red circle is left of ", "the blue square"),
    text_request(" ".join(["one two three"] * 12), " four"),
    text_request("A:", " x"),
]


def values(found: Iterable) -> list[float]:
    return [one.log_probability for one in found]


@functools.cache
def tiny(shows_images: bool, moe: bool = False) -> MM1:
    decoder = Decoder.default_config().set(
        **{"vocab_size": tokenizer().vocab_size, "model_dim": 16, "num_layers": 2},
        **{"num_heads": 4, "num_kv_heads": 2, "hidden_dim": 24},
    )
    if moe:
        capacity = Capacity.default_config().set(capacity_factor=0.5)
        decoder.moe = MoE.default_config().set(num_experts=4, dispatch=capacity)
        decoder.moe_every = 2
    encoder = VisionEncoder.default_config().set(
        image_size=8, patch_size=4, model_dim=8, num_layers=1, num_heads=2, hidden_dim=16
    )
    connector = AveragePooling.default_config().set(num_image_tokens=NUM_IMAGE_TOKENS)
    return drawn_model(
        MM1.default_config().set(
            vision_encoder=encoder if shows_images else None,
            connector=connector if shows_images else None,
            decoder=decoder,
            image_token=tokenizer().image_token,
        )
    )


def scorer(**options) -> LikelihoodScorer:
    images = {"num_image_tokens": NUM_IMAGE_TOKENS, "image_size": 8, "pixels": lambda x: x.data}
    return LikelihoodScorer(tokenizer(), **(images | options))


@jax.jit
def all_logits(model: MM1, batch: Batch) -> jax.Array:
    return model.logits(model(batch, dropless=True).hidden)


def assert_greedy(found: bool, logits: jax.Array, tail: list[int]) -> None:
    """Asserts that a continuation is greedy if each token has the top logit; ties may be either."""
    is_ahead = []
    for row, token in zip(np.asarray(logits), tail, strict=True):
        rival = int(np.where(np.arange(len(row)) == token, -np.inf, row).argmax())
        is_ahead.append(None if is_near_tie(row, token, rival) else row[token] > row[rival])
    if False in is_ahead or None not in is_ahead:
        assert found == all(is_ahead)


def whole(model: MM1, request: LikelihoodRequest) -> tuple[float, jax.Array, list[int]]:
    """Returns the likelihood from the full logits of one row, the logits, and the scored tokens."""
    *others, last = request.prompt.segments
    head, tail = encode_pair(tokenizer(), last.text, request.continuation)
    builder = ExampleBuilder(
        tokenizer(),
        num_image_tokens=NUM_IMAGE_TOKENS,
        max_sequence_length=999,
        max_images=9,
    )
    start = builder.prompt(Document((*others,))).tokens.tolist() if others else [tokenizer().bos]
    start = [*start[: 1 + NUM_IMAGE_TOKENS * len(others)], *head]
    ids = np.array([*start, *tail], np.int32)
    example = builder.prompt(Document((*others, Text("x"))))
    example = type(example)(ids[:-1], ids[1:], np.zeros(len(ids) - 1, bool), example.images)
    shape = RowShape(40, 2, 8)
    batch = assemble([example], lambda x: x.data, shape)
    logits = np.asarray(all_logits(model, batch))[0, len(start) - 1 : len(ids) - 1]
    scores = jax.nn.log_softmax(logits, axis=-1)
    total = float(np.sum(np.asarray(scores)[np.arange(len(tail)), tail]))
    return total, logits, tail


def test_likelihoods_equal_those_of_transformers(tmp_path):
    """Compares with a Llama that has the same weights, row by row and without padding."""
    torch.manual_seed(0)
    source = LlamaForCausalLM(
        LlamaConfig(
            **{"vocab_size": tokenizer().vocab_size, "hidden_size": 32, "intermediate_size": 48},
            **{"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2},
        )
    ).eval()
    source.save_pretrained(tmp_path / "hf")
    import_checkpoint(tmp_path / "hf", tmp_path / "ours")
    stored = StoredParams(tmp_path / "ours")
    cfg = MM1.default_config().set(
        vision_encoder=None, connector=None, image_token=tokenizer().image_token
    )
    cfg.decoder = parts_of_weights(stored)["decoder"]
    graphdef, shapes = nnx.split(
        nnx.eval_shape(lambda: cfg.instantiate(rngs=nnx.Rngs(params=jax.random.key(0))))
    )

    def fill(path, variable):
        return variable.replace(jnp.asarray(stored.read("/".join(map(str, path)))))

    model = nnx.merge(graphdef, nnx.map_state(fill, shapes))
    found = LikelihoodScorer(tokenizer(), batch_size=3)(model, TEXTS)
    for request, one in zip(TEXTS, found, strict=True):
        prompt = request.prompt.segments[0].text
        head, tail = encode_pair(tokenizer(), prompt, request.continuation)
        ids = torch.tensor([[tokenizer().bos, *head, *tail]])
        with torch.no_grad():
            scores = source(ids[:, :-1]).logits[0, -len(tail) :].log_softmax(-1)
        expected = float(scores[torch.arange(len(tail)), torch.tensor(tail)].sum())
        assert one.log_probability == pytest.approx(expected, abs=2e-4)
        assert_greedy(one.is_greedy, scores, tail)
        assert one.num_tokens == len(tail) and one.num_cut == 0
        assert one.num_bytes == len(request.continuation.encode())


def test_likelihoods_equal_those_of_the_full_logits_with_pictures():
    model, rng = tiny(True), np.random.default_rng(0)
    pictures = [Image(rng.integers(0, 256, (8, 8, 3), np.uint8)) for _ in range(3)]
    requests = [
        LikelihoodRequest(Document((pictures[0], Text("what is it? Short answer:"))), " a three"),
        LikelihoodRequest(Document((pictures[1], pictures[2], Text("which?"))), " red"),
        text_request("what is it?", " a three"),
    ]
    found = scorer(batch_size=3)(model, requests)
    for request, one in zip(requests, found, strict=True):
        total, logits, tail = whole(model, request)
        assert one.log_probability == pytest.approx(total, abs=1e-4)
        assert_greedy(one.is_greedy, logits, tail)
    black = Image(np.zeros((8, 8, 3), np.uint8))
    blank = LikelihoodRequest(Document((black, *requests[0].prompt.segments[1:])), " a three")
    assert (
        abs(scorer(batch_size=3)(model, [blank])[0].log_probability - found[0].log_probability)
        > 1e-4
    )


def test_only_the_most_likely_token_is_greedy():
    """Checks a uniform output layer first, then single tokens after a common prompt."""
    (token,) = encode_pair(tokenizer(), "A:", " red")[1]
    graphdef, params = nnx.split(tiny(False), nnx.Param)
    params = jax.tree.map(jnp.zeros_like, params)
    model = nnx.merge(graphdef, params)
    # With zero hidden states all tokens are equally likely, and the first counts as greedy.
    (one,) = scorer()(model, [text_request("A:", " red")])
    assert one.log_probability == pytest.approx(-np.log(tokenizer().vocab_size), abs=1e-5)
    assert not one.is_greedy
    batch_of = LikelihoodScorer(tokenizer(), batch_size=1)
    model = tiny(False)
    row = batch_of._row(text_request("A:", " red")).example
    batch = assemble([row], lambda x: x, RowShape(len(row.tokens), 1, 1))
    logits = all_logits(model, batch)[0, -1:]
    best = int(logits.argmax())
    words = [f" {tokenizer().decode([i])}" for i in range(300, 400)]
    single = {
        ids[0]: text_request("A:", word)
        for word in words
        if len(ids := encode_pair(tokenizer(), "A:", word)[1]) == 1
    }
    assert len(single) > 20 and token not in (best,)
    found = scorer(batch_size=32)(model, [*single.values()])
    for token, one in zip(single, found, strict=True):
        assert_greedy(one.is_greedy, logits, [token])


def test_a_likelihood_does_not_depend_on_batch_order_or_padding(monkeypatch):
    model = tiny(False, moe=True)
    together = values(scorer(batch_size=4)(model, TEXTS))
    alone = [scorer(batch_size=1)(model, [one])[0].log_probability for one in TEXTS]
    np.testing.assert_allclose(together, alone, atol=2e-5)
    backwards = values(scorer(batch_size=4)(model, TEXTS[::-1]))[::-1]
    np.testing.assert_allclose(together, backwards, atol=2e-5)
    monkeypatch.setattr(likelihood, "bucket", lambda length: 128)
    np.testing.assert_allclose(values(scorer(batch_size=4)(model, TEXTS)), together, atol=2e-5)


def test_computing_logits_in_chunks_changes_nothing(monkeypatch):
    model = tiny(False, moe=True)
    requests = [TEXTS[0], TEXTS[2], TEXTS[4]]
    expected = scorer(batch_size=4)(model, requests)
    monkeypatch.setattr(likelihood, "_MAX_LOGITS", 1)
    assert likelihood._chunk_size(1000, 8) == 1
    # The batch has a size that no other test compiles.
    found = scorer(batch_size=3)(model, requests)
    np.testing.assert_allclose(values(found), values(expected), atol=1e-5)
    monkeypatch.undo()
    # With 16 rows and 32,000 entries, 128 positions at a time, for any number of scored ones.
    assert likelihood._chunk_size(16 * 32_000, 4096) == 128


def test_few_shapes_are_compiled():
    requests = [
        text_request("word " * length, " red" * scored)
        for length in range(1, 20)
        for scored in range(1, 5)
    ]
    shapes = {scorer()._row(request).shape for request in requests}
    assert len(shapes) <= 4


def test_likelihoods_on_a_mesh_equal_those_of_one_device():
    model = tiny(True)
    rng = np.random.default_rng(1)
    picture = Image(rng.integers(0, 256, (8, 8, 3), np.uint8))
    requests = [TEXTS[4], LikelihoodRequest(Document((picture, Text("is it?"))), " yes")]
    expected = scorer(batch_size=4)(model, requests)
    mesh = Parallelism.default_config().set(data=2, fsdp=2, model=2).instantiate().mesh()
    graphdef, params = nnx.split(model, nnx.Param)
    params = jax.device_put(params, parameter_shardings(params, mesh, AxisRules()))
    with use_mesh(mesh):
        found = scorer(batch_size=4)(nnx.merge(graphdef, params), requests)
    np.testing.assert_allclose(values(found), values(expected), atol=2e-5)
    for request, one in zip(requests, found, strict=True):
        assert_greedy(one.is_greedy, *whole(model, request)[1:])


def test_a_prompt_that_is_too_long_loses_its_beginning_but_not_bos():
    model = tiny(False)
    prompt = "one two three four five six seven eight nine ten"
    ids = tokenizer().encode(prompt)
    cut = scorer(max_length=9)
    (one,) = cut(model, [text_request(prompt, " red")])
    num_tail = len(encode_pair(tokenizer(), prompt, " red")[1])
    assert one.num_tokens == num_tail
    assert one.num_cut == 1 + len(ids) + num_tail - 1 - 9
    row = cut._row(text_request(prompt, " red"))
    assert row.example.tokens[0] == tokenizer().bos and len(row.example.tokens) == 9
    np.testing.assert_array_equal(row.example.tokens[1 : 10 - num_tail], ids[one.num_cut :])
    with pytest.raises(ValueError, match="max_length=2"):
        scorer(max_length=2)(model, [text_request("a", " " + "three hundred " * 9)])


def test_a_whole_text_is_scored_in_windows_that_predict_each_token_once():
    assert list(likelihood._windows(12, 5)) == [(0, 5, 5), (5, 10, 5), (7, 12, 2)]
    assert list(likelihood._windows(5, 5)) == list(likelihood._windows(5, None)) == [(0, 5, 5)]
    assert list(likelihood._windows(0, 5)) == []
    model, texts = tiny(False), ["one two three four five six", "", "red"]
    whole_rows = scorer().rolling(model, texts)
    requests = [text_request("", text) for text in texts if text]
    assert [one for one in whole_rows if one.num_tokens] == scorer()(model, requests)
    taken = {}
    found = scorer(max_length=5, batch_size=2).rolling(model, texts, on_result=taken.__setitem__)
    assert [taken[i] for i in range(len(texts))] == found
    assert [one.num_tokens for one in found] == [len(tokenizer().encode(text)) for text in texts]
    assert [one.num_bytes for one in found] == [len(text) for text in texts]
    assert found[1].log_probability == 0
    # Other shapes compile to another order of summation.
    assert found[2].log_probability == pytest.approx(whole_rows[2].log_probability, rel=1e-5)
    assert found[0].log_probability != pytest.approx(whole_rows[0].log_probability, rel=1e-4)


def test_images_are_dropped_as_a_whole():
    pictures = [Image(np.full((8, 8, 3), level, np.uint8)) for level in (0, 100)]
    request = LikelihoodRequest(Document((*pictures, Text("is it?"))), " yes")
    full = len(scorer()._row(request).example.tokens)
    # The row is one position too long: the first picture is dropped with all its positions.
    row = scorer(max_length=full - 1)._row(request)
    assert row.num_cut == NUM_IMAGE_TOKENS and row.example.images == (pictures[1],)
    is_image = row.example.tokens == tokenizer().image_token
    assert is_image.sum() == NUM_IMAGE_TOKENS and is_image[1]


def test_requests_that_cannot_be_scored_are_refused():
    with pytest.raises(ValueError, match="adds no token after"):
        scorer()(tiny(False), [text_request("a", "")])
    picture = Image(np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(ValueError, match="the model reads none"):
        LikelihoodScorer(tokenizer())(tiny(False), [LikelihoodRequest(Document((picture,)), "a")])
    with pytest.raises(ValueError, match="batch_size=0"):
        LikelihoodScorer(tokenizer(), batch_size=0)


def test_spaces_at_the_end_of_a_prompt_belong_to_the_continuation():
    assert encode_pair(tokenizer(), "a red ", "circle") == encode_pair(
        tokenizer(), "a red", " circle"
    )
