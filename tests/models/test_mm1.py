import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from experiments.vision_encoders import vit_h14
from mm1_jax.batch import Batch
from mm1_jax.image_buffer import ImageBuffer
from mm1_jax.layers.moe import MoE
from mm1_jax.models.mm1 import MM1
from mm1_jax.parallel.parallelism import Parallelism
from mm1_jax.parallel.sharding import AxisRules, parameter_shardings, use_mesh

IMAGE, IMAGE_SIZE, NUM_IMAGE_TOKENS = 3, 8, 4

# Sizes of every batch; equal sizes let tests share compiled programs.
ROWS, LENGTH, SLOTS = 4, 20, 4

# Tokens of documents; IMAGE stands for all positions of an image.
FIRST, SECOND, THIRD = [1, IMAGE, 5, 6], [1, 7, IMAGE, 8], [1, 9, 10, 11, 12]


@pytest.fixture
def cfg():
    cfg = MM1.default_config().set(image_token=IMAGE)
    cfg.vision_encoder.set(
        image_size=IMAGE_SIZE, patch_size=2, model_dim=8, num_layers=1, num_heads=2, hidden_dim=8
    )
    cfg.connector.set(num_image_tokens=NUM_IMAGE_TOKENS, depth=1, hidden_dim=8)
    cfg.decoder.set(
        vocab_size=16, model_dim=8, num_layers=2, num_heads=2, num_kv_heads=1, hidden_dim=16
    )
    return cfg


@pytest.fixture
def sparse_cfg(cfg):
    cfg.decoder.set(moe=MoE.default_config().set(num_experts=4), moe_every=2)
    return cfg


@jax.jit
def forward(model, batch):
    output = model(batch, dropless=True)
    return model.logits(output.hidden), output.router


def make_batch(rows, images, num_rows=ROWS):
    """Makes packed rows, then empty ones; a document is (tokens, indices of its images)."""
    shape = (num_rows, LENGTH)
    fields = {
        name: np.zeros(shape, np.int32)
        for name in ("tokens", "targets", "positions", "segment_ids", "corpus_ids")
    }
    image_index = np.full((num_rows, SLOTS), -1, np.int32)
    for row, documents in enumerate(rows):
        start = slot = 0
        for segment, (places, numbers) in enumerate(documents, start=1):
            tokens = np.concatenate(
                [[t] * (NUM_IMAGE_TOKENS if t == IMAGE else 1) for t in places]
            ).astype(np.int32)
            span = slice(start, start + len(tokens))
            fields["tokens"][row, span] = tokens
            fields["targets"][row, span] = np.append(tokens[1:], 2)
            fields["positions"][row, span] = np.arange(len(tokens))
            fields["segment_ids"][row, span] = segment
            image_index[row, slot : slot + len(numbers)] = numbers
            start, slot = span.stop, slot + len(numbers)
    loss_mask = (fields["segment_ids"] > 0) & (fields["targets"] != IMAGE)
    batch = Batch(loss_mask=loss_mask, images=images, image_index=image_index, **fields)
    return jax.tree.map(jnp.asarray, batch)


@pytest.fixture
def images():
    shape = (4, IMAGE_SIZE, IMAGE_SIZE, 3)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture
def packed(images):
    """A row of three documents, then padding; the first has image 2, the second image 0."""
    return make_batch([[(FIRST, [2]), (SECOND, [0]), (THIRD, [])]], images)


def document_loss(model, batch, pixels, shift, segment):
    """The cross-entropy of one document, as a function of all pixels and all embeddings."""
    with_pixels = jax.tree.map(lambda leaf: pixels if leaf is batch.images else leaf, batch)
    embeddings = model.embed(with_pixels) + shift
    hidden = model.decoder(
        embeddings, positions=batch.positions, segment_ids=batch.segment_ids, dropless=True
    ).hidden
    loss = optax.softmax_cross_entropy_with_integer_labels(model.logits(hidden), batch.targets)
    return jnp.sum(loss * (batch.loss_mask & (batch.segment_ids == segment)))


@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_documents_of_a_packed_row_do_not_affect_each_other(kind, build, packed, request):
    model = build(request.getfixturevalue("cfg" if kind == "dense" else "sparse_cfg"))
    gradients = jax.jit(jax.grad(document_loss, argnums=(2, 3)))
    pixels = packed.images.astype(jnp.float32)
    shift = jnp.zeros((ROWS, LENGTH, 8))
    own_image = {1: 2, 2: 0, 3: None}
    for segment, image in own_image.items():
        pixel_gradient, embedding_gradient = gradients(model, packed, pixels, shift, segment)
        inside = packed.segment_ids == segment
        assert jnp.all(jnp.where(inside[:, :, None], 0, embedding_gradient) == 0)
        assert jnp.any(embedding_gradient[inside] != 0)
        touched = {i for i in range(4) if jnp.any(pixel_gradient[i] != 0)}
        assert touched == ({image} if image is not None else set())


@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_packed_logits_equal_unpacked_logits(kind, build, images, packed, request):
    model = build(request.getfixturevalue("cfg" if kind == "dense" else "sparse_cfg"))
    documents = [(FIRST, [2]), (SECOND, [0]), (THIRD, [])]
    logits, _ = forward(model, packed)
    alone, _ = forward(model, make_batch([[document] for document in documents], images))
    for row, segment in enumerate((1, 2, 3)):
        inside = packed.segment_ids[0] == segment
        np.testing.assert_allclose(
            logits[0, inside], alone[row, : inside.sum()], rtol=1e-4, atol=1e-5
        )


def test_rows_and_batches_without_images_use_the_same_program(build, cfg, images):
    model = build(cfg)
    full = [([IMAGE] * SLOTS, range(SLOTS))]
    batches = [
        make_batch([[(FIRST, [1])], [(THIRD, [])]], images),
        make_batch([full, [(THIRD, [])]], images),
        make_batch([[(THIRD, [])], [(THIRD, []), (THIRD, [])]], np.zeros_like(images)),
    ]
    traces = []

    @jax.jit
    def step(model, batch):
        traces.append(batch)
        return model(batch).hidden

    assert all(jnp.isfinite(step(model, batch)).all() for batch in batches)
    assert len(traces) == 1


def test_the_order_of_the_image_buffer_does_not_matter(build, cfg, images):
    model = build(cfg)
    rows = [(FIRST, [2]), (SECOND, [0])]
    order = np.array([3, 2, 0, 1])
    moved = [(tokens, [np.flatnonzero(order == i)[0] for i in places]) for tokens, places in rows]
    logits, _ = forward(model, make_batch([rows], images))
    reordered, _ = forward(model, make_batch([moved], images[order]))
    np.testing.assert_allclose(logits, reordered, rtol=1e-4, atol=1e-5)


def test_a_missing_image_has_no_effect(build, cfg, images):
    model = build(cfg)
    missing = make_batch([[(FIRST, [-1])]], images)
    darkened = make_batch([[(FIRST, [-1])]], images // 2)
    np.testing.assert_array_equal(forward(model, missing)[0], forward(model, darkened)[0])


def test_embed_returns_the_inputs_of_the_decoder(build, cfg, packed):
    @jax.jit
    def logits(model, batch):
        output = model.decoder(
            model.embed(batch), positions=batch.positions, segment_ids=batch.segment_ids
        )
        return model.logits(output.hidden)

    model = build(cfg)
    np.testing.assert_allclose(
        logits(model, packed), forward(model, packed)[0], rtol=1e-5, atol=1e-5
    )


def test_cached_decoding_equals_the_full_forward_pass(build, sparse_cfg, images):
    """Compares prompts of different lengths, then three tokens each, with logits of whole rows."""
    model = build(sparse_cfg)
    prompts = [([1, IMAGE, 5], [3]), ([1, 7, IMAGE, 8, 9], [1]), ([1], []), ([1, 2], [])]
    more = np.array([[6, 7, 8], [10, 11, 12], [13, 14, 15], [4, 5, 6]], np.int32)
    wholes = [
        [([*tokens, *row], numbers)] for (tokens, numbers), row in zip(prompts, more, strict=True)
    ]
    expected, _ = forward(model, make_batch(wholes, images))
    batch = make_batch([[prompt] for prompt in prompts], images)
    lengths = np.asarray((batch.segment_ids > 0).sum(1))

    @jax.jit
    def prefill(model, batch):
        hidden, caches = model.prefill(batch, model.init_caches(ROWS, LENGTH + 3))
        return model.logits(hidden), caches

    @jax.jit
    def decode_step(model, tokens, positions, caches):
        hidden, caches = model.decode_step(tokens, positions, caches)
        return model.logits(hidden), caches

    logits, caches = prefill(model, batch)
    steps = [np.asarray(logits)[np.arange(ROWS), lengths - 1]]
    for step in range(3):
        positions = jnp.asarray(lengths + step, jnp.int32)
        logits, caches = decode_step(model, jnp.asarray(more[:, step]), positions, caches)
        steps.append(np.asarray(logits)[:, 0])
    for row, length in enumerate(lengths):
        np.testing.assert_allclose(
            np.stack(steps)[:, row], expected[row, length - 1 : length + 3], rtol=1e-4, atol=1e-4
        )


def test_norms_and_routers_stay_float32_when_the_model_is_cast(build, sparse_cfg):
    model = build(sparse_cfg.set(dtype="bfloat16"))
    stays = {
        path: str(variable[...].dtype) == "float32"
        for path, variable in nnx.to_flat_state(nnx.state(model.cast()))
    }
    assert stays == {
        path: "router" in path or any("norm" in str(name) for name in path) for path in stays
    }
    router = model.cast().decoder.stack.last_layer.feed_forward.router
    np.testing.assert_array_equal(router, model.decoder.stack.last_layer.feed_forward.router)


def test_a_sparse_step_in_bfloat16_is_close_to_float32(sparse_cfg, build, packed):
    def loss(model, batch):
        output = model(batch)
        logits = model.logits(output.hidden)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.targets)
        total = jnp.sum(losses * batch.loss_mask) + output.router.load_balance.sum()
        return total, (output.hidden, logits)

    sparse_cfg.connector.depth = 0
    sparse_cfg.decoder.moe_every = 1
    step = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (value, (_, logits)), gradient = step(build(sparse_cfg), packed)
    low_model = build(sparse_cfg.set(dtype="bfloat16"))
    (low_value, (hidden, low_logits)), low_gradient = step(low_model, packed)
    assert hidden.dtype == jnp.bfloat16
    assert low_logits.dtype == jnp.float32
    assert {x.dtype for x in jax.tree.leaves(low_gradient)} == {jnp.dtype("float32")}
    np.testing.assert_allclose(low_value, value, rtol=0.02)
    real = packed.segment_ids > 0
    assert jnp.abs(low_logits - logits)[real].max() < 0.1 * jnp.abs(logits[real]).max()
    low, high = (
        np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])
        for tree in (low_gradient, gradient)
    )
    assert np.linalg.norm(low - high) < 0.1 * np.linalg.norm(high)


def test_eight_devices_compute_the_same_as_one(build, cfg, images):
    model = build(cfg)
    rows = [[(FIRST, [i % 4]), (THIRD, [])] for i in range(4)]
    batch = make_batch(rows, images)
    mesh = Parallelism.default_config().set(data=2, fsdp=2, model=2).instantiate().mesh()
    with use_mesh(mesh):
        logits = jax.jit(lambda model, batch: model.logits(model(batch).hidden))(model, batch)
    np.testing.assert_allclose(logits, forward(model, batch)[0], rtol=1e-4, atol=1e-5)


MESHES = [{"data": 2, "fsdp": 2, "model": 2}, {"data": 2, "fsdp": 4}]


def grouped(rows, pictures, group_rows, group_slots):
    """Makes packed rows with one buffer per group, and maps each picture to its slot.

    The rows name pictures by their index in `pictures`, in the order of the documents.
    """
    order = ImageBuffer(group_rows, group_slots).slot_order()
    buffer = np.zeros((len(rows) // group_rows * group_slots, *pictures.shape[1:]), np.uint8)
    places, moved, taken = {}, [], 0
    for b, documents in enumerate(rows):
        taken = 0 if b % group_rows == 0 else taken
        moved.append([])
        for tokens, numbers in documents:
            own = order[taken : taken + len(numbers)] + b // group_rows * group_slots
            taken += len(numbers)
            places |= dict(zip(numbers, own.tolist(), strict=True))
            moved[-1].append((tokens, own))
    for number, place in places.items():
        buffer[place] = pictures[number]
    return make_batch(moved, buffer, num_rows=len(rows)), places


@pytest.mark.parametrize(("group_rows", "group_slots"), [(1, 2), (4, 8), (8, 8)])
def test_sharing_a_buffer_does_not_change_logits_and_gradients(build, cfg, group_rows, group_slots):
    """Also compares one device with eight, and the gradient of each picture."""
    rows = [
        [(FIRST, [0]), (SECOND, [1])],
        [(THIRD, [])],
        [(SECOND, [2])],
        [(THIRD, []), (FIRST, [3])],
        [(FIRST, [4])],
        [(FIRST, [5]), (THIRD, [])],
        [(THIRD, [])],
        [(SECOND, [6]), (FIRST, [7])],
    ]
    shape = (8, IMAGE_SIZE, IMAGE_SIZE, 3)
    pictures = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)

    def step(model, batch, pixels, weights):
        with_pixels = jax.tree.map(lambda leaf: pixels if leaf is batch.images else leaf, batch)
        hidden = model.decoder(
            model.embed(with_pixels), positions=batch.positions, segment_ids=batch.segment_ids
        ).hidden
        return jnp.sum(hidden * weights), model.logits(hidden)

    def run(batch, places, mesh):
        model = build(cfg)
        weights = jnp.asarray(np.random.default_rng(1).normal(size=(8, LENGTH, 8)), jnp.float32)
        pixels = batch.images.astype(jnp.float32)
        with use_mesh(mesh):
            compiled = jax.jit(jax.value_and_grad(step, argnums=2, has_aux=True))
            (_, logits), gradient = compiled(model, batch, pixels, weights)
        empty = np.setdiff1d(np.arange(len(pixels)), list(places.values()))
        assert not np.asarray(gradient)[empty].any()
        return logits, np.stack([gradient[places[number]] for number in range(8)])

    expected = run(*grouped(rows, pictures, 1, 4), None)
    assert all(gradient.any() for gradient in expected[1])
    cfg.image_group_rows = group_rows
    for axes in (None, *MESHES):
        mesh = axes and Parallelism.default_config().set(**axes).instantiate().mesh()
        found = run(*grouped(rows, pictures, group_rows, group_slots), mesh)
        for actual, right in zip(found, expected, strict=True):
            np.testing.assert_allclose(actual, right, rtol=1e-4, atol=2e-5)


def test_a_missing_image_token_and_an_unknown_dtype_are_refused(cfg, build):
    with pytest.raises(ValueError, match="dtype='float16': expected one of 'float32', 'bfloat16'"):
        build(cfg.clone(dtype="float16"))
    with pytest.raises(ValueError, match="image_token=None: set it to the tokenizer's"):
        build(cfg.clone(image_token=None))


def full_size() -> MM1.Config:
    """ViT-H/14 at 378 px, a C-Abstractor of 144 tokens, and the 3B's decoder."""
    cfg = MM1.default_config().set(vision_encoder=vit_h14(), image_token=IMAGE)
    cfg.connector.num_image_tokens = 144
    cfg.decoder.set(vocab_size=32000, model_dim=3072, num_layers=26, num_heads=24, hidden_dim=8192)
    return cfg


@pytest.mark.parametrize("image_size", [448, 672])
def test_the_full_size_model_reads_rows_of_larger_views(image_size):
    cfg = full_size()
    cfg.vision_encoder.image_size = image_size
    model = nnx.eval_shape(lambda: cfg.instantiate(rngs=nnx.Rngs(params=0)))
    side = image_size // 14
    assert model.vision_encoder.positions.positions.shape == (side**2, 1280)
    assert model.connector.positions.positions.shape == (side**2, 1280)
    integers = jax.ShapeDtypeStruct((2, 4096), jnp.int32)
    batch = Batch(
        tokens=integers,
        targets=integers,
        loss_mask=jax.ShapeDtypeStruct((2, 4096), jnp.bool_),
        positions=integers,
        segment_ids=integers,
        corpus_ids=integers,
        images=jax.ShapeDtypeStruct((2 * 28, image_size, image_size, 3), jnp.uint8),
        image_index=jax.ShapeDtypeStruct((2, 28), jnp.int32),
    )
    output = jax.eval_shape(lambda model, batch: model(batch), model, batch)
    assert output.hidden.shape == (2, 4096, 3072)


def test_the_full_size_model_has_the_parameters_of_its_parts_and_can_be_sharded():
    cfg = full_size()
    model = nnx.eval_shape(lambda: cfg.instantiate(rngs=nnx.Rngs(params=0)))

    def millions(part):
        return sum(x.size for x in jax.tree.leaves(nnx.state(part))) / 1e6

    assert model.connector.positions.positions.shape == (27 * 27, 1280)
    assert 630 < millions(model.vision_encoder) < 634
    assert 20 < millions(model.connector) < 40
    assert 2940 < millions(model.decoder) - 2 * 32000 * 3072 / 1e6 < 2947

    # Raises where a parameter has no logical names or the mesh does not divide it.
    mesh = Parallelism.default_config().set(data=1, fsdp=4, model=2).instantiate().mesh()
    parameter_shardings(nnx.state(model), mesh, AxisRules())
