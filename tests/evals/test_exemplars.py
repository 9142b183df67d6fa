"""Exemplars by similarity: the nearest, most similar last, never the query, for any batch size."""

import gc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mm1_jax.batch import Document, Image, Text
from mm1_jax.data.tokenizers.sentencepiece import Tokenizer
from mm1_jax.evals import exemplars
from mm1_jax.evals.benchmarks.digits import digits_caption, digits_vqa
from mm1_jax.evals.exemplars import (
    ComparedRecords,
    Features,
    SimilarExemplars,
    features_in_file,
    read_features,
    write_features,
)
from mm1_jax.models.connectors.average_pooling import AveragePooling
from mm1_jax.models.decoder import Decoder
from mm1_jax.models.mm1 import MM1
from mm1_jax.models.vision_encoder import VisionEncoder


class Sees(MM1):
    """A model whose features of a picture are its pixels."""

    vision_encoder = "not called"


class Blind(MM1):
    vision_encoder = None


calls: list[int] = []


@pytest.fixture
def model(monkeypatch) -> MM1:
    """A model whose image features are pixels; `calls` records the size of each batch."""
    calls.clear()

    def pooled(model, images, *, placement):
        calls.append(len(images))
        flat = images.reshape(len(images), -1).astype(np.float32)
        return flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-12)

    monkeypatch.setattr(exemplars, "_pooled", pooled)
    return object.__new__(Sees)


def pixels(image: Image) -> np.ndarray:
    return image.data


def side(*pictures: np.ndarray, texts: tuple[str, ...] = ()) -> ComparedRecords:
    texts = texts or ("",) * len(pictures)
    documents = [
        Document((Image(picture), Text(text)))
        for picture, text in zip(pictures, texts, strict=True)
    ]
    return ComparedRecords([str(i) for i in range(len(documents))], documents.__getitem__)


def colours(*values: tuple[int, int, int]) -> list[np.ndarray]:
    return [np.broadcast_to(np.array(value, np.uint8), (2, 2, 3)) for value in values]


def chosen(model, queries, support, count, exclude=None, **fields) -> list[int]:
    selection = SimilarExemplars.default_config().set(**fields).instantiate()
    found = selection.features(model, queries, support, pixels=pixels)
    return selection.choose(*found, 0, count, exclude)


def test_the_most_similar_are_chosen_and_the_nearest_comes_last(model):
    red, green, orange, blue, pink = colours(
        (200, 10, 10), (10, 200, 10), (200, 90, 10), (10, 10, 200), (210, 60, 60)
    )
    queries, support = side(red), side(green, orange, blue, pink)
    assert chosen(model, queries, support, 1) == [3]
    assert chosen(model, queries, support, 2) == [1, 3]
    assert chosen(model, queries, support, 4) == [2, 0, 1, 3]
    # The query itself would be the nearest.
    assert chosen(model, queries, side(green, red, blue), 1) == [1]
    assert chosen(model, queries, side(green, red, blue), 2, exclude=1) == [2, 0]


def test_the_first_of_equally_similar_records_is_nearest(model):
    red, blue = colours((200, 10, 10), (10, 10, 200))
    support = side(blue, red, red, red)
    assert chosen(model, side(red), support, 2) == [2, 1]
    assert chosen(model, side(red), support, 3) == [3, 2, 1]


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7, 32])
def test_the_choice_is_the_same_for_any_batch_size(model, batch_size):
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (4, 4, 3), np.uint8) for _ in range(11)]
    queries, support = side(*pictures[:3]), side(*pictures)
    cfg = SimilarExemplars.default_config().set(batch_size=batch_size)
    selection = cfg.instantiate()
    found = selection.features(model, queries, support, pixels=pixels)
    flat = np.array([picture.ravel() for picture in pictures], np.float64)
    cosines = flat @ flat.T / np.outer(*[np.linalg.norm(flat, axis=1)] * 2)
    for place in range(3):
        expected = np.argsort(-cosines[place])[1:5][::-1].tolist()
        assert selection.choose(*found, place, 4, exclude=place) == expected


def test_an_undecodable_picture_is_similar_to_nothing(model):
    red, blue = colours((200, 10, 10), (10, 10, 200))
    support = side(red, blue, red)
    selection = SimilarExemplars.default_config().instantiate()
    bad = iter([None, blue, red])
    found = selection.features(
        model, side(red), support, pixels=lambda image: next(bad, red), tokenizer=None
    )
    # The query has no features, so all are equally similar and the first are chosen.
    assert selection.choose(*found, 0, 2) == [1, 0]


def test_texts_count_by_text_weight(model, monkeypatch):
    tokenizer = Tokenizer.default_config().instantiate()
    weight = np.random.default_rng(0).normal(size=(tokenizer.vocab_size, 8)).astype(np.float32)

    def embedded(model, tokens, *, placement):
        total = np.where(tokens[..., None] >= 0, weight[tokens], 0).sum(1)
        return total / np.maximum(np.linalg.norm(total, axis=1, keepdims=True), 1e-12)

    monkeypatch.setattr(exemplars, "_embedded", embedded)
    red, blue = colours((200, 10, 10), (10, 10, 200))
    queries = side(red, texts=("how many circles",))
    support = side(red, blue, texts=("is it left of the cross", "how many circles"))
    for text_weight, nearest in ((0.0, 0), (0.2, 0), (0.9, 1), (1.0, 1)):
        selection = SimilarExemplars.default_config().set(text_weight=text_weight).instantiate()
        found = selection.features(model, queries, support, pixels=pixels, tokenizer=tokenizer)
        assert selection.choose(*found, 0, 1) == [nearest]


def write(path, **changes):
    arrays = {
        "support_ids": np.array(["a", "b", "c"]),
        "support": np.array([[1.0, 0], [0, 2], [3, 3]]),
        "query_ids": np.array([5, 7]),
        "query": np.array([[0, 9.0], [1, 0]]),
    }
    np.savez(path, **{k: v for k, v in (arrays | changes).items() if v is not None})


def test_features_in_a_file_are_matched_by_id(tmp_path):
    write(tmp_path / "f.npz")
    queries, support = features_in_file(tmp_path / "f.npz", ["7", "5"], ["c", "a", "b"])
    selection = SimilarExemplars.default_config().instantiate()
    assert selection.choose(queries, support, 0, 3) == [2, 0, 1]
    assert selection.choose(queries, support, 1, 2) == [0, 2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"query": None}, "expected an .npz with the arrays"),
        ({"support": np.ones((2, 2))}, "support must have a finite vector"),
        ({"query": np.full((2, 2), np.nan)}, "query must have a finite vector"),
        ({"query": np.ones((2, 3))}, "differ in length"),
        ({"query_ids": np.array(["5", "8"])}, "query_ids lack 1 of 2 records, the first '7'"),
    ],
)
def test_a_file_with_other_features_is_rejected(changes, message, tmp_path):
    write(tmp_path / "f.npz", **changes)
    with pytest.raises(ValueError, match=message):
        features_in_file(tmp_path / "f.npz", ["7", "5"], ["a", "b"])


def test_invalid_options_are_rejected():
    def build(**fields):
        return SimilarExemplars.default_config().set(**fields).instantiate()

    with pytest.raises(ValueError, match="text_weight=2"):
        build(text_weight=2.0)
    with pytest.raises(ValueError, match="batch_size=0"):
        build(batch_size=0)
    with pytest.raises(ValueError, match="set only one of them"):
        build(text_weight=0.5, features_file="x.npz")
    model = object.__new__(Blind)
    with pytest.raises(ValueError, match="has no vision encoder"):
        build().features(model, side(), side(), pixels=pixels)


def test_stored_features_are_used_only_for_the_same_inputs(tmp_path):
    path = tmp_path / "a" / "features.npz"
    one = Features(np.eye(2, dtype=np.float32), np.array([1, -1]))
    two = Features(np.eye(2, dtype=np.float32), np.array([0]), np.ones((1, 3), np.float32))
    write_features(path, one, two, {"step": 3})
    queries, support = read_features(path, {"step": 3})
    np.testing.assert_array_equal(queries.rows, one.rows)
    assert queries.texts is None and support.texts.shape == (1, 3)
    assert read_features(path, {"step": 4}) is None
    path.write_bytes(path.read_bytes()[:50])
    assert read_features(path, {"step": 3}) is None
    assert read_features(tmp_path / "none.npz", {}) is None


def benchmark(make, input, **fields):
    sizes = {"num_examples": 6, "num_few_shot_examples": 6, "batch_size": 4, "shots": (3,)}
    cfg = make().set(**(sizes | fields))
    cfg.exemplars = SimilarExemplars.default_config()
    return cfg.instantiate(input=input)


def test_a_benchmark_shows_the_scans_most_like_the_query(input, model):
    asking = benchmark(digits_caption, input)
    with pytest.raises(ValueError, match="call prepare"):
        asking.tasks(3)[0]
    asking.maker.prepare(model, 3)
    train = [asking.maker.support.document(i).images[0] for i in range(len(asking.maker.support))]
    seen = np.array([input.image_transform(image).ravel() for image in train], np.float64)
    seen /= np.linalg.norm(seen, axis=1, keepdims=True)
    num_like = 0
    for task in asking.tasks(3):
        query = input.image_transform(task.document.images[0]).ravel().astype(np.float64)
        likeness = seen @ (query / np.linalg.norm(query))
        shown = [input.image_transform(d.images[0]).ravel() for d in task.exemplars]
        shown = np.array(shown, np.float64)
        values = shown @ query / np.linalg.norm(shown, axis=1) / np.linalg.norm(query)
        np.testing.assert_allclose(values, np.sort(likeness)[-3:], atol=1e-4)
        label = task.document.segments[-1].text
        num_like += sum(d.segments[-1].text == label for d in task.exemplars)
    # Similar scans mostly show the same digit.
    assert num_like > 9
    assert "most similar to the query" in asking.describe()


def test_exemplars_are_never_the_query_and_features_are_computed_once_per_model(input, model):
    asking = benchmark(digits_vqa, input, exemplar_split="test", num_few_shot_examples=3)
    asking.maker.prepare(model, 3)
    for task in asking.tasks(3):
        own = task.document.images[0].data.tobytes()
        assert own not in {d.images[0].data.tobytes() for d in task.exemplars}
    num_calls = len(calls)
    asking.maker.prepare(model, 2)
    asking.maker.prepare(model, 0)
    assert len(calls) == num_calls > 0
    other = object.__new__(Sees)
    asking.maker.prepare(other, 3)
    assert len(calls) == 2 * num_calls
    # The cache of features does not keep the model alive.
    del other
    gc.collect()
    assert asking.maker._features.model() is None


def test_features_are_stored_between_runs(input, model, tmp_path):
    cache, about = tmp_path / "features.npz", {"step": 3}
    first, again, other = (benchmark(digits_caption, input) for _ in range(3))
    first.maker.prepare(model, 3, cache=cache, about=about)
    num_calls = len(calls)
    again.maker.prepare(model, 3, cache=cache, about=about)
    assert len(calls) == num_calls
    for mine, kept in zip(first.tasks(3), again.tasks(3), strict=True):
        shown = [[d.images[0].data.tobytes() for d in task.exemplars] for task in (mine, kept)]
        assert shown[0] == shown[1]
    other.maker.prepare(model, 3, cache=cache, about={"step": 4})
    assert len(calls) == 2 * num_calls


def test_random_exemplars_are_the_default(input, monkeypatch):
    cfg = digits_caption()
    assert cfg.exemplars is None
    asking = cfg.instantiate(input=input)
    monkeypatch.setattr(SimilarExemplars, "features", None)
    asking.maker.prepare(object.__new__(MM1), 4)
    assert len(asking.tasks(4)[0].exemplars) == 4


def test_pictures_and_texts_are_pooled_by_the_model():
    """With a real encoder and decoder, features are means scaled to unit length."""
    cfg = MM1.default_config().set(
        vision_encoder=VisionEncoder.default_config().set(
            image_size=8, patch_size=4, model_dim=8, num_layers=1, num_heads=2, hidden_dim=16
        ),
        connector=AveragePooling.default_config().set(num_image_tokens=4),
        decoder=Decoder.default_config().set(
            vocab_size=16, model_dim=16, num_layers=1, num_heads=2, hidden_dim=24
        ),
        image_token=3,
    )
    shapes = nnx.eval_shape(lambda: cfg.instantiate(rngs=nnx.Rngs(params=jax.random.key(0))))
    rng = np.random.default_rng(0)
    model = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), shapes)
    images = rng.integers(0, 256, (3, 8, 8, 3), np.uint8)

    def unit(vectors):
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    found = exemplars._pooled(model, images, placement=None)
    patches = np.asarray(jax.jit(lambda model, x: model.vision_encoder(x))(model, images))
    np.testing.assert_allclose(found, unit(patches.mean(axis=1)), atol=1e-5)
    tokens = np.array([[4, 5, -1], [6, -1, -1]], np.int32)
    table = np.asarray(model.decoder.embedding.weight[...])
    expected = unit(np.stack([table[4] + table[5], table[6]]))
    np.testing.assert_allclose(
        exemplars._embedded(model, tokens, placement=None), expected, atol=1e-5
    )
