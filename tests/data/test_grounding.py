"""Boxes and points: conventions agree with pixels that are drawn, and texts round-trip."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mm1_jax.batch import View
from mm1_jax.data import grounding
from mm1_jax.data.grounding import Coordinates, Frame
from mm1_jax.data.images import Fit, resize
from mm1_jax.data.record_files import BadRecord

SIDES = st.integers(1, 4000)
FRACTIONS = st.floats(0, 1)


@st.composite
def boxes(draw):
    (x0, x1), (y0, y1) = (sorted(draw(st.tuples(FRACTIONS, FRACTIONS))) for _ in range(2))
    return x0, y0, x1, y1


VIEWS = st.builds(
    lambda columns, rows, place, pads: View(
        columns, rows, place % columns, place // columns % rows, pads
    ),
    st.integers(1, 6),
    st.integers(1, 6),
    st.integers(0, 35),
    st.booleans(),
)
SIZED_FRAMES = (grounding.pixels, grounding.padded_square, grounding.resized_pixels)
FRAMES = st.one_of(
    st.sampled_from([grounding.FRACTIONS, grounding.PERCENT, grounding.THOUSANDTHS]),
    st.builds(lambda make, w, h: make(w, h), st.sampled_from(SIZED_FRAMES), SIDES, SIDES),
    st.builds(grounding.view_frame, VIEWS, SIDES, SIDES),
)


@given(FRAMES, boxes())
def test_every_convention_is_inverted(frame, box):
    assert frame.fractions(frame.coordinates(box)) == pytest.approx(box, abs=1e-9)
    assert frame.coordinates(box[:2]) == frame.coordinates(box)[:2]


@given(boxes())
def test_coco_boxes_have_a_corner_and_a_size(box):
    x0, y0, x1, y1 = box
    again = grounding.box_of_corner_and_size((x0, y0, x1 - x0, y1 - y0))
    assert again == pytest.approx(box)


@pytest.mark.parametrize(
    ("frame", "coordinates"),
    [
        # A box from (64, 120) to (320, 360) of a picture of 640 x 480 pixels.
        (grounding.FRACTIONS, (0.1, 0.25, 0.5, 0.75)),
        (grounding.PERCENT, (10, 25, 50, 75)),
        (grounding.THOUSANDTHS, (100, 250, 500, 750)),
        (grounding.pixels(640, 480), (64, 120, 320, 360)),
        # The picture is padded by 80 pixels above and below, to 640 x 640.
        (grounding.padded_square(640, 480), (0.1, 200 / 640, 0.5, 440 / 640)),
        # 640 x 480 becomes 644 x 476, the nearest multiples of 28.
        (grounding.resized_pixels(640, 480), (64.4, 119, 322, 357)),
        # The lower left of 2 x 2 tiles shows what is right of 0 and below one half.
        (grounding.view_frame(View(2, 2, 0, 1), 640, 480), (0.2, -0.5, 1.0, 0.5)),
    ],
)
def test_conventions_of_published_sets(frame, coordinates):
    assert frame.coordinates((0.1, 0.25, 0.5, 0.75)) == pytest.approx(coordinates)


def test_resized_pixels_are_those_of_transformers():
    qwen = pytest.importorskip("transformers.models.qwen2_vl.image_processing_pil_qwen2_vl")
    limits = {"factor": 28, "min_pixels": 56 * 56, "max_pixels": 14 * 14 * 4 * 1280}
    for width, height in itertools.product((30, 57, 300, 644, 1333, 4000), repeat=2):
        expected = qwen.smart_resize(height, width, **limits)
        frame = grounding.resized_pixels(width, height)
        assert (frame.height, frame.width) == expected, (width, height)


def picture_of_box(width: int, height: int, box: tuple[int, int, int, int]) -> np.ndarray:
    """Draws a white box, given in pixels, on black."""
    pixels = np.zeros((height, width, 3), np.uint8)
    x0, y0, x1, y1 = box
    pixels[y0:y1, x0:x1] = 255
    return pixels


def seen_box(pixels: np.ndarray) -> tuple[int, int, int, int]:
    """Returns the box in pixels that a picture shows."""
    ys, xs = np.nonzero(pixels[..., 0] > 127)
    return xs.min(), ys.min(), xs.max() + 1, ys.max() + 1


@pytest.mark.parametrize("fit", [Fit.STRETCH, Fit.PAD])
@pytest.mark.parametrize(("width", "height"), [(640, 480), (333, 700), (512, 512)])
def test_a_box_lies_where_a_resized_picture_shows_it(fit, width, height):
    box, size = (60, 100, 260, 400), 224
    shown = seen_box(resize(picture_of_box(width, height, box), size, fit))
    frame = grounding.view_frame(View(1, 1, 0, 0, fit is Fit.PAD), width, height)
    fractions = grounding.pixels(width, height).fractions(box)
    assert [size * x for x in frame.coordinates(fractions)] == pytest.approx(shown, abs=1.1)
    if fit is Fit.PAD:
        llava = grounding.padded_square(width, height).coordinates(fractions)
        assert llava == pytest.approx(frame.coordinates(fractions), abs=1 / width)


@given(VIEWS.filter(lambda view: not view.pads), boxes())
def test_tiles_side_by_side_show_a_box_at_its_place(view, box):
    in_tile = grounding.view_frame(view, 640, 480).coordinates(box)
    whole = [x * n for x, n in zip(box, 2 * (view.columns, view.rows), strict=True)]
    corner = 2 * (view.column, view.row)
    assert in_tile == pytest.approx([x - start for x, start in zip(whole, corner, strict=True)])


@given(boxes())
def test_padded_tiles_keep_the_aspect_ratio(box):
    frame = grounding.view_frame(View(3, 2, 1, 0, True), 800, 200)
    assert frame.width / frame.height == pytest.approx(4)
    # Centered in a grid of 3 x 2 tiles, whose middle is the lower edge of this tile.
    assert frame.left + frame.width / 2 == pytest.approx(0.5)
    assert frame.top + frame.height / 2 == pytest.approx(1)


CONFIGS = {
    "ferret": Coordinates.default_config(),
    "fractions": Coordinates.default_config().set(full=1, decimals=2),
    "internvl": Coordinates.default_config().set(
        full=1000, box="<box>[[{x0}, {y0}, {x1}, {y1}]]</box>", point="<point>[[{x}, {y}]]</point>"
    ),
    "percent": Coordinates.default_config().set(full=100, decimals=1, point='x="{x}" y="{y}"'),
}
WRITERS = {name: cfg.instantiate() for name, cfg in CONFIGS.items()}


@given(st.sampled_from(list(WRITERS.values())), boxes())
def test_texts_are_read_back_up_to_rounding(writer, box):
    step = 0.5 * 10**-writer.config.decimals / writer.config.full + 1e-9
    assert writer.box(writer.write(box)) == pytest.approx(box, abs=step)
    assert writer.point(writer.write(box[:2])) == pytest.approx(box[:2], abs=step)
    # Reading a text and writing it changes nothing.
    text = writer.write(box)
    assert writer.write(writer.box(text)) == text


@given(
    st.sampled_from(list(WRITERS.values())),
    st.lists(boxes(), max_size=3),
    st.text("ab .,[]0\n", max_size=9),
)
def test_boxes_in_a_sentence_become_placeholders(writer, found, filler):
    texts = [writer.write(box) for box in found]
    joint = f" cat {filler} "
    marked, values = writer.extract(joint.join(["", *texts, ""]))
    assert marked == joint.join(["", *["<box>"] * len(found), ""])
    expected = [writer.box(text) for text in texts]
    assert values == [pytest.approx(box) for box in expected]
    assert writer.boxes(joint.join(["", *texts, ""])) == expected


def test_points_and_boxes_keep_their_order():
    writer = WRITERS["ferret"]
    text, values = writer.extract("from [1, 2] to [0, 0, 999, 999] and [999, 0]")
    assert text == "from <point> to <box> and <point>"
    assert values == [(1 / 999, 2 / 999), (0, 0, 1, 1), (1, 0)]


def test_boxes_of_llava_are_read_as_fractions_of_the_padded_picture():
    writer = WRITERS["fractions"]
    frame = grounding.padded_square(640, 480)
    text, values = writer.extract("It is at [0.1, 0.31, 0.5, 0.69].", frame)
    assert text == "It is at <box>."
    assert values == [pytest.approx((0.1, 0.2467, 0.5, 0.7533), abs=1e-4)]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("in the middle", "expected one box"),
        ("[1, 2, 3]", "expected one box"),
        ("[1, 2, 3, 4] [1, 2, 3, 4]", "expected one box"),
        ("the box [1, 2, 3, 4]", "expected one box"),
        ("[1, 2, 3, 1000]", "from 0 to 999"),
        ("[-1, 2, 3, 4]", "from 0 to 999"),
        ("[5, 2, 3, 4]", "expected x0 <= x1"),
        ("[nan, 2, 3, 4]", "expected one box"),
    ],
)
def test_malformed_answers_are_refused(answer, reason):
    with pytest.raises(ValueError, match=reason):
        WRITERS["ferret"].box(answer)


@pytest.mark.parametrize("answer", ["[1, 2, 3, 4]", " [1,2,3,4].\n", "[ 1 , 2 , 3 , 4 ]"])
def test_spacing_of_an_answer_does_not_matter(answer):
    numbers = tuple(x / 999 for x in (1, 2, 3, 4))
    assert WRITERS["ferret"].box(answer) == numbers


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ("ab", "expected"),
        (None, "expected"),
        ([1, 2, 3], "expected"),
        ([0, 0, math.nan, 1], "finite"),
        ([0, 0, 10**400, 1], "finite"),
        ([0, 0, "1", 1], "finite"),
        ([0, 0, 1.5, 1], "outside"),
        ([0.5, 0, 0.4, 1], "expected x0 <= x1"),
    ],
)
def test_malformed_regions_are_bad_records(values, reason):
    with pytest.raises(BadRecord, match=reason):
        grounding.region(values)


def test_rounding_at_the_edge_is_forgiven():
    assert grounding.region([-0.5, 2, 101, 100.4], grounding.PERCENT) == (0, 0.02, 1, 1)


def test_a_template_without_a_coordinate_is_refused():
    with pytest.raises(ValueError, match=r"coordinates\.box=.*expected \{x0\}"):
        Coordinates.default_config().set(box="[{x0}, {y0}]").instantiate()


def area_by_counting(inside) -> int:
    return sum(bool(inside(x + 0.5, y + 0.5)) for x in range(12) for y in range(12))


@given(*[st.tuples(*[st.integers(0, 12)] * 4) for _ in range(2)])
def test_iou_counts_cells(a, b):
    (a, b) = ((min(r[0], r[2]), min(r[1], r[3]), max(r[0], r[2]), max(r[1], r[3])) for r in (a, b))
    inside = [lambda x, y, r=r: grounding.is_inside((x, y), r) for r in (a, b)]
    shared = area_by_counting(lambda x, y: inside[0](x, y) and inside[1](x, y))
    covered = area_by_counting(lambda x, y: inside[0](x, y) or inside[1](x, y))
    assert grounding.iou(a, b) == pytest.approx(shared / covered if covered else 0)
    # The unit of an axis does not matter.
    wide = Frame(3, -1, 7, 0.5)
    assert grounding.iou(wide.coordinates(a), wide.coordinates(b)) == pytest.approx(
        grounding.iou(a, b)
    )
