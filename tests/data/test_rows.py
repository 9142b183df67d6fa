import dataclasses

import numpy as np
import pytest
from drawn_corpus import corpus

from mm1_jax.batch import Document, Image, Text
from mm1_jax.data.examples import ExampleBuilder
from mm1_jax.data.images import BadImage, ImageTransform
from mm1_jax.data.lengths import Lengths
from mm1_jax.data.packing import PlannedRecord, PlannedRow
from mm1_jax.data.rows import BufferPart, RowLoader, RowShape, assemble, concatenate
from mm1_jax.data.snapshot import CorpusExamples
from mm1_jax.data.tokenizers.sentencepiece import IMAGE_TOKEN
from mm1_jax.image_buffer import ImageBuffer

M = 4
SHAPE = RowShape(max_sequence_length=128, max_images=8, image_size=16)
# Every row has its own slots.
OWN = ImageBuffer(1, 8)


@pytest.fixture(scope="module")
def example_builder(tokenizer):
    return ExampleBuilder(tokenizer, num_image_tokens=M, max_sequence_length=128, max_images=8)


@pytest.fixture(scope="module")
def image_transform():
    return ImageTransform.default_config().set(image_size=16).instantiate()


def make_row_loader(corpus, examples, image_transform, seed=0):
    return RowLoader(
        examples,
        corpus_names=[corpus.name],
        augmentations=[corpus.augmentation],
        image_transform=image_transform,
        num_image_tokens=M,
        image_token=IMAGE_TOKEN,
        seed=seed,
    )


@pytest.fixture
def make_loader(example_builder, image_transform):
    def make(split="train", seed=0, **source):
        config = corpus("drawn", max_images=3, **source)
        drawn = config.instantiate(split=split)
        lengths = Lengths(np.ones((len(drawn), 2), np.int32))
        return make_row_loader(
            drawn, CorpusExamples([drawn], [lengths], example_builder), image_transform, seed
        )

    return make


@pytest.fixture
def plan(example_builder):
    """Plans rows of the given records of a corpus without defects."""
    drawn = corpus("drawn", max_images=3).instantiate(split="train")

    def make(*indices, epoch=0):
        return PlannedRow(
            0,
            tuple(
                PlannedRecord(0, epoch, index, *example_builder.lengths(drawn.document(index)))
                for index in indices
            ),
        )

    return make


def _load(loader, *rows, buffer=OWN, first_row=0):
    slots = buffer.place([row.num_images for row in rows], first_row=first_row)
    part = BufferPart(buffer.slots(range(first_row, first_row + len(rows))), SHAPE.image_size)
    loaded = [loader.load(row, numbers, part) for row, numbers in zip(rows, slots, strict=True)]
    return loaded, part


def _batch(loader, *rows, buffer=OWN, first_row=0):
    loaded, part = _load(loader, *rows, buffer=buffer, first_row=first_row)
    return concatenate([examples for examples, _ in loaded], SHAPE, part)


def _bad(loader, row):
    ((_, bad),), _ = _load(loader, row)
    return bad


def _equal(a, b):
    for field in dataclasses.fields(a):
        np.testing.assert_array_equal(getattr(a, field.name), getattr(b, field.name), field.name)


def test_a_row_is_the_concatenation_of_its_examples(make_loader, plan, example_builder):
    loader, row = make_loader(), plan(3, 1, 4)
    drawn = corpus("drawn", max_images=3).instantiate(split="train")
    batch = _batch(loader, row)
    start = 0
    for number, record in enumerate(row.records, start=1):
        example = example_builder.example(drawn.document(record.index))
        span = slice(start, start + record.num_tokens)
        np.testing.assert_array_equal(batch.tokens[0, span], example.tokens)
        np.testing.assert_array_equal(batch.targets[0, span], example.targets)
        np.testing.assert_array_equal(batch.loss_mask[0, span], example.loss_mask)
        np.testing.assert_array_equal(batch.positions[0, span], np.arange(record.num_tokens))
        assert (batch.segment_ids[0, span] == number).all()
        assert (batch.corpus_ids[0, span] == 0).all()
        assert example.loss_mask.any() and not example.loss_mask.all()
        start = span.stop
    padding = slice(start, None)
    assert start < SHAPE.max_sequence_length
    assert (batch.corpus_ids[0, padding] == -1).all()
    for name in ("tokens", "targets", "loss_mask", "positions", "segment_ids"):
        assert not getattr(batch, name)[0, padding].any(), name


def test_every_slot_has_its_image_tokens(make_loader, plan, tokenizer):
    rows = [plan(0, 1, 2), plan(5), plan(7, 8)]
    batch = _batch(make_loader(), *rows)
    for b, row in enumerate(rows):
        num_images = sum(record.num_images for record in row.records)
        assert num_images
        assert np.sum(batch.tokens[b] == tokenizer.image_token) == M * num_images
        used = np.arange(b * SHAPE.max_images, b * SHAPE.max_images + num_images)
        np.testing.assert_array_equal(batch.image_index[b, :num_images], used)
        assert (batch.image_index[b, num_images:] == -1).all()


def test_the_buffer_holds_the_pictures_in_order(make_loader, example_builder, image_transform):
    loader = make_loader(split="test")
    drawn = corpus("drawn", max_images=3).instantiate(split="test")
    # Held-out pictures are not augmented, so only the transform changes them.
    row = PlannedRow(0, tuple(
        PlannedRecord(0, 0, i, *example_builder.lengths(drawn.document(i))) for i in (2, 6)
    ))  # fmt: skip
    batch = _batch(loader, row)
    pictures = [image_transform(image) for i in (2, 6) for image in drawn.document(i).images]
    np.testing.assert_array_equal(batch.images[: len(pictures)], pictures)
    assert not batch.images[len(pictures) :].any()


def test_a_corrupt_picture_changes_nothing_but_itself_and_its_loss(make_loader, plan):
    rows = [plan(0, 1, 2), plan(3, 4)]
    clean = _batch(make_loader(), *rows)
    broken = _batch(make_loader(bad_images=[1]), *rows)
    first = rows[0].records[0].num_images
    document = clean.segment_ids[0] == 2
    assert broken.image_index[0, first] == -1
    assert not broken.loss_mask[0, document].any()
    assert clean.loss_mask[0, document].any()

    expected = dataclasses.replace(
        clean,
        image_index=clean.image_index.copy(),
        loss_mask=clean.loss_mask.copy(),
        images=clean.images.copy(),
    )
    expected.image_index[0, first] = -1
    expected.images[first] = 0
    expected.loss_mask[0, document] = False
    _equal(broken, expected)


def test_a_corrupt_picture_is_reported_with_its_reason(make_loader, plan):
    ((name, index, epoch, reason),) = _bad(make_loader(bad_images=[1]), plan(0, 1, 2, epoch=3))
    assert (name, index, epoch) == ("drawn", 1, 3)
    assert reason.startswith("image 0: not an image")


def test_a_record_that_fails_after_planning_keeps_its_positions(make_loader, plan, tokenizer):
    row = plan(0, 1, 2)
    clean = _batch(make_loader(), row)
    loader = make_loader(bad_records=[1])
    broken = _batch(loader, row)
    others = clean.segment_ids[0] != 2
    for name in ("tokens", "targets", "loss_mask"):
        np.testing.assert_array_equal(
            getattr(broken, name)[0, others], getattr(clean, name)[0, others]
        )
    for name in ("positions", "segment_ids", "corpus_ids"):
        np.testing.assert_array_equal(getattr(broken, name), getattr(clean, name))
    assert not broken.loss_mask[0, ~others].any()
    # The number of placeholders is unchanged, so that later documents keep their slots.
    placeholders = [np.sum(x.tokens[0] == tokenizer.image_token) for x in (clean, broken)]
    assert placeholders[0] == placeholders[1]
    first, second = (record.num_images for record in row.records[:2])
    expected = clean.image_index[0].copy()
    expected[first : first + second] = -1
    np.testing.assert_array_equal(broken.image_index[0], expected)
    (bad,) = _bad(loader, row)
    assert bad.reason == "drawn as bad"


def test_lengths_that_no_longer_hold_are_an_error(make_loader, plan):
    row = plan(0)
    stale = PlannedRow(0, (row.records[0]._replace(num_tokens=99),))
    with pytest.raises(ValueError, match="'drawn', example 0: .* lengths table says 99"):
        _load(make_loader(), stale)


def test_augmentation_depends_on_the_record_and_its_epoch_alone(make_loader, plan):
    def pictures(row, seed=0):
        (((*_, example), _),), part = _load(make_loader(seed=seed), row)
        return part.images()[example.slots]

    np.testing.assert_array_equal(pictures(plan(4)), pictures(plan(0, 1, 4)))
    np.testing.assert_array_equal(pictures(plan(4)), pictures(plan(4)))
    assert not np.array_equal(pictures(plan(4)), pictures(plan(4, epoch=1)))
    assert not np.array_equal(pictures(plan(4)), pictures(plan(4), seed=1))


def test_pictures_of_a_document_are_augmented_independently(example_builder, image_transform):
    class Twins:
        name = "twins"
        augmentation = corpus("twins").augmentation.instantiate()

        def example(self, row, place):
            picture = np.arange(16 * 16 * 3, dtype=np.uint8).reshape(16, 16, 3)
            document = Document((Image(picture), Image(picture), Text("twins")))
            return example_builder.example(document)

        def record_number(self, row, place):
            return 0

    loader = make_row_loader(Twins(), Twins(), image_transform)
    example = Twins().example(None, 0)
    lengths = len(example.tokens), len(example.images)
    batch = _batch(loader, PlannedRow(0, (PlannedRecord(0, 0, 0, *lengths),)))
    assert batch.images[0].any()
    assert not np.array_equal(batch.images[0], batch.images[1])


def test_part_of_a_batch_is_a_slice_of_the_whole(make_loader, plan):
    rows = [plan(0, 1), plan(2), plan(3, 4)]
    whole = _batch(make_loader(), *rows)
    part = _batch(make_loader(), *rows[1:], first_row=1)
    pictures = slice(SHAPE.max_images, None)
    for field in dataclasses.fields(whole):
        expected = getattr(whole, field.name)[pictures if field.name == "images" else slice(1, 3)]
        np.testing.assert_array_equal(getattr(part, field.name), expected, field.name)


def test_rows_of_a_group_share_a_buffer_and_overflowing_documents_are_not_scored(make_loader, plan):
    rows = [plan(0, 1), plan(2), plan(3, 4), plan(6, 7)]
    whole = _batch(make_loader(), *rows)
    counts = [[record.num_images for record in row.records] for row in rows]
    buffer = ImageBuffer(group_rows=4, group_slots=sum(map(sum, counts)) - 1)
    placed = buffer.place([row.num_images for row in rows])
    lost = [(b, n) for b, row in enumerate(placed) for n, x in enumerate(row) if -1 in x]
    # The last document has no room, even if there is some for one of its pictures.
    assert lost == [(3, 1)] and placed[3][1] == [-1] * counts[3][1]

    batch = _batch(make_loader(), *rows, buffer=buffer)
    assert len(batch.images) == buffer.group_slots
    document = whole.segment_ids[3] == 2
    assert whole.loss_mask[3, document].any()
    whole.loss_mask[3, document] = False
    for name in ("tokens", "targets", "loss_mask", "positions", "segment_ids", "corpus_ids"):
        np.testing.assert_array_equal(getattr(batch, name), getattr(whole, name), name)
    shown = batch.image_index >= 0
    assert shown.sum() == sum(map(sum, counts)) - counts[3][1]
    np.testing.assert_array_equal(
        batch.images[batch.image_index[shown]], whole.images[whole.image_index[shown]]
    )


def test_pictures_of_other_rows_are_read_if_the_buffer_is_shared(make_loader, plan):
    loader, rows = make_loader(bad_images=[2]), [plan(0, 1), plan(2), plan(3, 4), plan(5)]
    buffer = ImageBuffer(group_rows=4, group_slots=12)
    whole = _batch(loader, *rows, buffer=buffer)
    slots = buffer.place([row.num_images for row in rows])
    for half in (range(0, 2), range(2, 4)):
        part = BufferPart(buffer.slots(half), SHAPE.image_size)
        own = [loader.load(rows[b], slots[b], part)[0] for b in half]
        for b in set(range(4)) - set(half):
            loader.load_images(rows[b], slots[b], part)
        batch = concatenate(own, SHAPE, part)
        for field in dataclasses.fields(whole):
            kept = part.slots if field.name == "images" else half
            expected = getattr(whole, field.name)[kept.start : kept.stop]
            np.testing.assert_array_equal(getattr(batch, field.name), expected, field.name)


def test_each_prompt_is_a_row_padded_on_the_right(example_builder, image_transform):
    picture = np.full((8, 8, 3), 200, np.uint8)
    prompts = [
        example_builder.prompt(Document((Image(picture), Text("what is this?")))),
        example_builder.prompt(Document((Text("no picture here"),))),
        example_builder.prompt(Document((Image(picture), Text("x"), Image(picture), Text("y")))),
    ]
    shape = RowShape(max_sequence_length=40, max_images=2, image_size=16)
    batch = assemble(prompts, image_transform, shape, num_rows=4)
    assert batch.tokens.shape == (4, 40)
    assert batch.images.shape == (8, 16, 16, 3)
    for b, prompt in enumerate(prompts):
        length = len(prompt.tokens)
        np.testing.assert_array_equal(batch.tokens[b, :length], prompt.tokens)
        np.testing.assert_array_equal(batch.segment_ids[b], np.arange(40) < length)
    assert not batch.segment_ids[3].any()
    np.testing.assert_array_equal(batch.image_index, [[0, -1], [-1, -1], [4, 5], [-1, -1]])


def test_an_unreadable_picture_of_a_prompt_is_never_ignored(example_builder, image_transform):
    prompt = example_builder.prompt(Document((Image(b"no picture"), Text("what is this?"))))
    with pytest.raises(BadImage, match="not an image"):
        assemble([prompt], image_transform, SHAPE)
    batch = assemble([prompt], lambda image: None, SHAPE)
    assert (batch.image_index == -1).all()
    assert np.sum(batch.tokens[0, : len(prompt.tokens)] != 0) == len(prompt.tokens)


def test_prompts_that_do_not_fit_are_rejected(example_builder, image_transform):
    picture = Image(np.zeros((8, 8, 3), np.uint8))
    prompt = example_builder.prompt(Document((picture, picture, Text("two pictures"))))
    with pytest.raises(ValueError, match="does not fit max_sequence_length=8"):
        assemble([prompt], image_transform, SHAPE._replace(max_sequence_length=8))
    with pytest.raises(ValueError, match="max_images=1"):
        assemble([prompt], image_transform, SHAPE._replace(max_images=1))
    with pytest.raises(ValueError, match="num_rows=0 is too small for 1 examples"):
        assemble([prompt], image_transform, SHAPE, num_rows=0)
