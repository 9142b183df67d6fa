import io
import json
import os
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from mm1_jax.batch import Document, Image, Text, View
from mm1_jax.data import grid_rules, grids, images
from mm1_jax.data.grids import Grid
from mm1_jax.data.tiling import (
    IndexMarks,
    Overview,
    SeparatorMarks,
    Tiling,
    last_pictures_tiled,
)

_SQUARE_GRIDS = tuple((i, j) for i in range(1, 7) for j in range(1, 7))


def _rule(name, **fields):
    return getattr(grid_rules, name).default_config().set(**fields)


# Rule of the vectors -> (rule, side of a tile, options of the tiling).
_RULES = {
    "internvl_1_12_448": (_rule("ClosestAspect"), 448, {}),
    "internvl_1_6_448": (_rule("ClosestAspect", max_tiles=6), 448, {}),
    "nvidia_area_weighted_1_12_448": (_rule("AreaWeightedAspect"), 448, {}),
    "llava_next_336": (_rule("Pinpoints"), 336, {"overview_of_one_tile": True}),
    "llava_next_336_transformers": (
        _rule("Pinpoints", rows_first=True),
        336,
        {"overview_of_one_tile": True},
    ),
    "llava_onevision_384_max9": (
        _rule("Pinpoints", grids=_SQUARE_GRIDS),
        384,
        {"overview_of_one_tile": True},
    ),
    "mm1_static_1344": (_rule("FixedGrid"), 672, {}),
    "mm1_5_eq1_4_9_672": (_rule("LeastPadding"), 672, {}),
    "mm1_5_eq1_4_16_672": (_rule("LeastPadding", max_tiles=16), 672, {}),
    "mm1_5_eq1_1_9_672": (_rule("LeastPadding", min_tiles=1), 672, {}),
    "mm1_5_fewest_4_9_672": (_rule("FewestTiles"), 672, {}),
    "mm1_5_fewest_4_16_672": (_rule("FewestTiles", max_tiles=16), 672, {}),
    "idefics3_364_1456": (_rule("LongestSide"), 364, {}),
    "smolvlm_512_2048": (_rule("LongestSide"), 512, {}),
}
# Rules whose models read a number of tokens that depends on the padding.
_UNPADDED = {
    "llava_next_336": {"features_per_side": 24},
    "llava_next_336_transformers": {"features_per_side": 24, "digits": 7},
    "llava_onevision_384_max9": {"features_per_side": 27, "max_tiles": 9},
}


def _vectors():
    """Yields the vectors of the repository, and those beside the test data."""
    paths = [Path(__file__).parent / "tiling_vectors.json"]
    if "MM1_TEST_DATA" in os.environ:
        paths.append(Path(os.environ["MM1_TEST_DATA"], "tiling", "tiling_vectors.json"))
    for path in paths:
        if path.is_file():
            yield from json.loads(path.read_text())["vectors"]


@pytest.mark.parametrize("name", _RULES)
def test_grids_views_and_tokens_are_those_of_the_vectors(name):
    rule, tile_size, options = _RULES[name]
    tiling = Tiling.default_config().set(rule=rule, tile_size=tile_size, **options).instantiate()
    for vector in _vectors():
        width, height = vector["size_wh"]
        expected, grid = vector[name], tiling.grid(width, height)
        views = tiling.views(width, height)
        assert [*grid] == expected["grid"], vector["size_wh"]
        assert len(views) == expected["views"], vector["size_wh"]
        assert sum(view is not None for view in views) == grid.num_tiles
        if name in _UNPADDED:
            tokens = grids.unpadded_tokens(width, height, grid, **_UNPADDED[name])
            assert tokens == expected["tokens"], vector["size_wh"]
        elif "tokens" in expected:
            assert 144 * len(views) == expected["tokens"], vector["size_wh"]


def test_grids_are_those_of_transformers():
    processing = pytest.importorskip("transformers.image_processing_utils")
    rng = np.random.default_rng(0)
    pinpoints = [(336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008)]
    for width, height in rng.integers(16, 3000, (300, 2)).tolist():
        for rows_first in (False, True):
            rule = _rule("Pinpoints", rows_first=rows_first).instantiate()
            pairs = pinpoints if rows_first else [pair[::-1] for pair in pinpoints]
            rows, columns = processing.select_best_resolution((height, width), pairs)
            assert rule.grid(width, height, 336) == Grid(columns // 336, rows // 336)


@pytest.mark.parametrize("name", ["LeastPadding", "FewestTiles"])
def test_every_square_picture_has_the_fewest_of_equally_good_tiles(name):
    rule = _rule(name, max_tiles=16).instantiate()
    # Rounding would make some of these sizes differ from others.
    assert {rule.grid(side, side, 672) for side in range(1, 1345)} == {Grid(2, 2)}
    assert rule.grid(1345, 1345, 672) == Grid(3, 3)


@pytest.mark.parametrize(
    "marks, expected",
    [
        (
            IndexMarks,
            "(0, 1, 1)|<0,0>|(0, 1, 2)|<1,0>|(0, 2, 1)|<0,1>|(0, 2, 2)|<1,1>|(0, 0, 0)|<whole>",
        ),
        (SeparatorMarks, "<0,0>|,|<1,0>|<n>|<0,1>|,|<1,1>|:|<whole>"),
        (None, "<0,0>|<1,0>|<0,1>|<1,1>|<whole>"),
    ],
)
def test_marks_stand_beside_the_views(marks, expected):
    tiling = _fixed_tiling(marks=marks and marks.default_config())
    document = tiling.document(Document((_picture(), Text("what?", scored=False), Text("a"))))
    assert _shown(document) == expected + "|what?|a"
    assert not any(each.scored for each in document.segments[:-1] if isinstance(each, Text))
    assert [image.continues for image in document.images] == [False, True, True, True, True]
    assert tiling.document(document) == document


def test_the_overview_is_last_or_first_or_missing():
    shown = {
        place: _shown(_fixed_tiling(overview=place, rows=1).document(Document((_picture(),))))
        for place in Overview
    }
    assert shown == {
        Overview.LAST: "<0,0>|<1,0>|<whole>",
        Overview.FIRST: "<whole>|<0,0>|<1,0>",
        Overview.NONE: "<0,0>|<1,0>",
    }
    first = _fixed_tiling(overview=Overview.FIRST, rows=1, marks=SeparatorMarks.default_config())
    assert _shown(first.document(Document((_picture(),)))) == "<whole>|:|<0,0>|,|<1,0>"


def test_documents_with_many_pictures_show_one_view_of_each():
    tiling = _fixed_tiling(max_tiled_images=2)
    for number, expected in ((1, 5), (2, 10), (3, 3)):
        document = Document((_picture(),) * number)
        assert len(tiling.document(document).images) == expected


def test_only_the_last_exemplars_are_tiled():
    exemplars = [Document((_picture(), Text(str(i)))) for i in range(4)]
    shown = last_pictures_tiled(exemplars, 1)
    prompt = Document(sum((each.segments for each in shown), ()))
    document = _fixed_tiling(max_tiled_images=2).document(prompt)
    assert _shown(document) == "<whole>|0|<whole>|1|<whole>|2|<0,0>|<1,0>|<0,1>|<1,1>|<whole>|3"


def test_a_picture_without_a_readable_header_has_one_view():
    tiling = _fixed_tiling()
    document = Document((Image(b"\xff\xd8\xff nothing"), Text("a")))
    assert tiling.document(document) == document


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_the_size_of_the_header_is_that_of_the_upright_picture(form, orientation):
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    stream = io.BytesIO()
    PIL.Image.new("RGB", (30, 20)).save(stream, form, exif=exif)
    image = Image(stream.getvalue())
    height, width, _ = images.decode(image, max_pixels=1000).shape
    assert images.picture_size(image) == (width, height)


def test_the_size_of_pixels_and_of_a_rendered_picture_is_their_shape():
    pixels = np.zeros((20, 30, 3), np.uint8)
    assert images.picture_size(Image(pixels)) == (30, 20)
    assert images.picture_size(Image(lambda: pixels)) == (30, 20)


def test_a_rendered_picture_that_states_its_size_is_not_rendered():
    class Drawing:
        size = (30, 20)

        def __call__(self):
            raise AssertionError("rendered")

    assert images.picture_size(Image(Drawing())) == (30, 20)
    assert len(_fixed_tiling().document(Document((Image(Drawing()),))).images) == 5


def test_a_mark_with_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match="tiling.marks.tile='{line}'.*expected a text with"):
        IndexMarks.default_config().set(tile="{line}").instantiate()


def _fixed_tiling(rows=2, **fields):
    rule = _rule("FixedGrid", rows=rows)
    return Tiling.default_config().set(rule=rule, tile_size=8, **fields).instantiate()


def _picture():
    return Image(np.zeros((16, 16, 3), np.uint8))


def _shown(document):
    return "|".join(map(_segment, document.segments))


def _segment(segment):
    if isinstance(segment, Text):
        return segment.text
    view = segment.view
    return "<whole>" if view is None else f"<{view.column},{view.row}>"


def test_tiles_cover_the_grid_in_row_major_order():
    tiling = _fixed_tiling(overview=Overview.NONE)
    assert tiling.views(10, 10) == [View(2, 2, i, j) for j in range(2) for i in range(2)]
