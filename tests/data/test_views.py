"""Views of pictures, from the picture to the batch."""

import dataclasses
import io

import numpy as np
import PIL.Image
import pytest
from drawn_corpus import corpus, input_config, stream
from test_snapshot import write

from mm1_jax.batch import Document, Image, Text, View
from mm1_jax.data import images
from mm1_jax.data.grid_rules import FixedGrid, LeastPadding
from mm1_jax.data.images import BadImage, Fit, ImageTransform, JpegDecoder, Viewer
from mm1_jax.data.snapshot import Form
from mm1_jax.data.splitting import Splitter
from mm1_jax.data.tiling import IndexMarks, Tiling

SIZE = 16


def _transform(**fields):
    return ImageTransform.default_config().set(image_size=SIZE, **fields).instantiate()


def _photo(width, height, form="JPEG", **options):
    """A smooth picture, which decoders and filters render alike."""
    y, x = np.mgrid[:height, :width] / max(width, height)
    values = [np.sin(7 * x + 3 * y), np.cos(5 * y), np.sin(9 * x * y)]
    pixels = (127.5 + 120 * np.stack(values, -1)).astype(np.uint8)
    stream = io.BytesIO()
    PIL.Image.fromarray(pixels).save(stream, form, **options)
    return Image(stream.getvalue())


def _views(image, columns, rows, pads=False):
    return [
        dataclasses.replace(image, view=View(columns, rows, column, row, pads))
        for row in range(rows)
        for column in range(columns)
    ]


def _joined(tiles, columns):
    rows = [tiles[i : i + columns] for i in range(0, len(tiles), columns)]
    return np.concatenate([np.concatenate(row, axis=1) for row in rows])


@pytest.mark.parametrize("columns, rows", [(2, 2), (3, 1), (1, 4)])
def test_tiles_are_cut_from_the_whole_picture_resized_to_the_grid(columns, rows):
    image = _photo(90, 50)
    whole = PIL.Image.fromarray(images.decode(image, max_pixels=10_000))
    stretched = whole.resize((columns * SIZE, rows * SIZE), PIL.Image.Resampling.BICUBIC)
    tiles = _transform().views(_views(image, columns, rows))
    np.testing.assert_array_equal(_joined(tiles, columns), np.asarray(stretched))


@pytest.mark.parametrize("width, height", [(90, 50), (50, 90), (31, 7)])
def test_a_padded_picture_keeps_its_aspect_and_is_centered_on_black(width, height):
    white = Image(np.full((height, width, 3), 255, np.uint8))
    canvas = _joined(_transform().views(_views(white, 3, 2, pads=True)), 3)[..., 0] > 0
    columns, rows = canvas.any(0), canvas.any(1)
    assert canvas.sum() == columns.sum() * rows.sum()
    assert columns.all() or rows.all()
    assert abs(columns.sum() / rows.sum() - width / height) < 0.15 * width / height
    for filled in (columns, rows):
        assert abs(int(filled.argmax()) - int(filled[::-1].argmax())) <= 1


def test_a_picture_is_decoded_once_for_all_of_its_views(monkeypatch):
    opened = []
    original = PIL.Image.open
    monkeypatch.setattr(PIL.Image, "open", lambda *a, **k: opened.append(1) or original(*a, **k))
    image, transform = _photo(90, 50), _transform()
    tiles = [*_views(image, 2, 2), image]
    together = transform.views(tiles)
    assert len(opened) == 1
    show = Viewer(transform)
    np.testing.assert_array_equal([show(each) for each in tiles], together)
    assert len(opened) == 2
    # A view does not depend on which others are shown, as hosts decode different ones.
    np.testing.assert_array_equal([transform(each) for each in tiles], together)


@pytest.mark.parametrize("decoder", [JpegDecoder.PILLOW_DRAFT, JpegDecoder.SIMPLEJPEG])
@pytest.mark.parametrize("orientation", [1, 6])
def test_scaled_decoding_leaves_enough_pixels_for_the_grid(decoder, orientation):
    if decoder is JpegDecoder.SIMPLEJPEG:
        pytest.importorskip("simplejpeg")
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    image = _photo(640, 320, quality=95, exif=exif)
    tiles = [*_views(image, 4, 2, pads=True), image]
    scaled = _transform(jpeg_decoder=decoder)
    exact = _transform().views(tiles)
    for mine, expected in zip(scaled.views(tiles), exact, strict=True):
        assert np.abs(mine.astype(int) - expected).mean() < 2
    np.testing.assert_array_equal([scaled(each) for each in tiles], scaled.views(tiles))


def test_a_damaged_picture_fails_for_each_of_its_views_and_for_no_other():
    show = Viewer(_transform())
    damaged = Image(_photo(90, 50).data[:900])
    assert images.picture_size(damaged) == (90, 50)
    for view in _views(damaged, 2, 1):
        with pytest.raises(BadImage):
            show(view)
    assert show(_photo(90, 50)).shape == (SIZE, SIZE, 3)


def _config(num_rows=4, **fields):
    tiling = Tiling.default_config().set(rule=FixedGrid.default_config().set(rows=1))
    streams = [stream("s", 1, corpus("pairs", max_images=1), corpus("pages", max_images=3))]
    return input_config(
        **dict(streams=streams, tiling=tiling, batch_size=num_rows, max_images=12) | fields
    )


def test_views_are_the_unit_of_the_plan_and_of_the_batch():
    input = _config().instantiate(split="train")
    assert input.lengths[0].table[:, 1].tolist() == [3] * 40
    batch = next(input.iterator())
    shown = batch.image_index >= 0
    is_image = batch.tokens == input.tokenizer.image_token
    assert shown.sum() > 12
    np.testing.assert_array_equal(is_image.sum(1), 4 * shown.sum(1))
    assert "views per picture: pairs 3.00 (of 40 pictures), pages 3.00" in input.describe()


def test_a_row_must_have_room_for_all_views_of_a_picture():
    tiling = Tiling.default_config().set(rule=LeastPadding.default_config().set(max_tiles=16))
    with pytest.raises(ValueError, match="may have 17 views, .* input.max_images=12"):
        _config(tiling=tiling).instantiate()


def test_only_a_tiled_input_has_another_fingerprint():
    plain, tiled = (_config(tiling=t).instantiate() for t in (None, _config().tiling))
    assert "tiling" not in plain.fingerprint() and "tiling" not in str(plain.example_builder)
    assert "FixedGrid" in tiled.fingerprint()["tiling"]
    assert plain.example_builder.fingerprint() in tiled.example_builder.fingerprint()


def test_a_shared_buffer_holds_the_views_that_rows_of_their_own_would():
    own = next(_config().instantiate().iterator())
    shared = _config(image_group_rows=2, images_per_row=12).instantiate()
    for rows in (range(4), range(2), range(2, 4)):
        batch = next(shared.iterator(rows))
        for row, index in zip(rows, batch.image_index, strict=True):
            for k, slot in enumerate(index):
                if slot < 0:
                    continue
                mine = batch.images[slot - shared.image_buffer.num_slots(rows.start)]
                theirs = own.images[own.image_index[row, k]]
                np.testing.assert_array_equal(mine, theirs)


def test_all_views_of_a_picture_are_augmented_alike():
    # The corpora augment. A grid of one tile that is stretched shows what the overview shows.
    tiling = Tiling.default_config().set(
        rule=FixedGrid.default_config().set(columns=1, rows=1), overview_of_one_tile=True
    )
    batch = next(_config(tiling=tiling).instantiate().iterator())
    numbers = batch.image_index[batch.image_index >= 0]
    np.testing.assert_array_equal(batch.images[numbers[::2]], batch.images[numbers[1::2]])


def test_a_document_with_a_damaged_picture_keeps_its_place_and_is_not_scored():
    config = _config()
    source = config.streams[0].corpora[0].corpus.source
    # Its header cannot be read, so it has one view.
    source.bad_images, config.max_bad_fraction = list(range(40)), 1.0
    input = config.instantiate()
    assert input.lengths[0].table[:, 1].tolist() == [1] * 40
    batch = next(input.iterator())
    of_pairs = batch.corpus_ids == 0
    assert of_pairs.any() and not batch.loss_mask[of_pairs].any()
    assert batch.loss_mask[batch.corpus_ids == 1].any()


def test_a_snapshot_of_rows_holds_each_picture_once(tmp_path):
    config = _config()
    input = config.instantiate()
    write(tmp_path, Form.ROWS, config)
    restored = config.clone(snapshot=str(tmp_path)).instantiate()
    mine, theirs = next(restored.iterator()), next(input.iterator())
    for field in dataclasses.fields(mine):
        np.testing.assert_array_equal(getattr(mine, field.name), getattr(theirs, field.name))
    size = sum(path.stat().st_size for path in tmp_path.glob("*.array_record"))
    pictures = restored.plan.row(0).num_images
    assert sum(pictures) > 0 and size < 10_000_000


def test_splits_never_part_the_views_of_a_picture(builder):
    tiling = Tiling.default_config().set(
        rule=LeastPadding.default_config().set(max_tiles=4),
        marks=IndexMarks.default_config(),
        max_tiled_images=1,
        tile_size=SIZE,
    )
    config = _config(tiling=tiling, max_sequence_length=64, max_images=5)
    entry = config.streams[0].corpora[1].corpus
    entry.source.set(max_images=4, max_words=60)
    entry.splitter = Splitter.default_config().set(block_characters=40)
    config.tiling.tile_size = None
    input = config.instantiate()
    lengths, pages = input.lengths[1], input.corpora[1]
    assert len(lengths) > len(pages) and not lengths.num_truncated
    for i in range(len(lengths)):
        example = input.example_builder.example(pages.piece(lengths.piece(i)))
        assert (len(example.tokens), len(example.images)) == tuple(lengths.table[i])
        starts = [j for j, image in enumerate(example.images) if not image.continues]
        assert set(np.diff([*starts, len(example.images)]).tolist()) <= {1, 5}


def test_a_document_that_is_too_long_is_not_cut_between_views(builder):
    tiling = Tiling.default_config().set(
        rule=FixedGrid.default_config(), marks=IndexMarks.default_config(), tile_size=SIZE
    )
    picture = Image(np.zeros((8, 8, 3), np.uint8))
    document = Document((Text("one"), picture, Text("two"), picture, Text("three")))
    for limit in range(6, 200):
        builder.max_sequence_length = limit
        builder.tiling = tiling.instantiate()
        assert len(builder.example(document).images) in (0, 5, 10)


def test_the_fit_of_the_transform_is_that_of_the_overview():
    image = _photo(90, 45)
    padded = _transform(fit=Fit.PAD).views([image])[0]
    assert padded[0].max() == 0 and padded[8].max() > 0
