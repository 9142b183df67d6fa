"""Properties of both embedded families, then the truth of the texts of each about its pictures.

Texts about scenes are checked against the pixels, independently of the code that wrote the texts.
"""

import re
from collections import Counter

import numpy as np
import pytest
from scipy import ndimage

from mm1_jax.batch import Document, Image, Text
from mm1_jax.data.corpora import digits, scenes
from mm1_jax.data.corpora.embedded import NUMBERS, Kind

FAMILIES = {"digits": digits, "scenes": scenes}
CORPORA = [(family, kind) for family in FAMILIES for kind in Kind]


def corpus(family: str, kind: Kind, split: str = "train", **source):
    return FAMILIES[family].corpus(kind, **source).instantiate(split=split)


def records(family: str, kind: Kind, split: str = "train", count: int = 300, **source) -> list:
    source = corpus(family, kind, split, **source).source
    return [with_pixels(source[i]) for i in range(min(count, len(source)))]


def with_pixels(value):
    """Renders the pictures in a record or in one of its values."""
    if isinstance(value, dict):
        return {name: with_pixels(part) for name, part in value.items()}
    if isinstance(value, list):
        return [with_pixels(part) for part in value]
    return value() if callable(value) else value


def contents(document: Document) -> list:
    return [
        with_pixels(segment.data).tobytes()
        if isinstance(segment, Image)
        else (segment.text, segment.scored)
        for segment in document.segments
    ]


def pictures(record) -> list[np.ndarray]:
    images = record["images"] if "images" in record else [record.get("image")]
    return [image for image in images if image is not None]


@pytest.mark.parametrize(("family", "kind"), CORPORA)
def test_a_document_is_a_function_of_split_and_index(family, kind):
    first, second = corpus(family, kind), corpus(family, kind)
    for index in (7, 3, 3, 0, len(first) - 1):
        assert contents(first.document(index)) == contents(second.document(index))
    drawn = [contents(first.document(index)) for index in range(20)]
    assert len({str(content) for content in drawn}) > 15
    with pytest.raises(IndexError):
        first.document(len(first))


@pytest.mark.parametrize(("family", "kind"), CORPORA)
def test_another_seed_or_split_draws_other_records(family, kind):
    base = [contents(corpus(family, kind).document(i)) for i in range(20)]
    held_out = [contents(corpus(family, kind, "test").document(i)) for i in range(20)]
    assert sum(a == b for a, b in zip(base, held_out, strict=True)) < 2
    if (family, kind) != ("digits", Kind.CAPTIONS):
        reseeded = [contents(corpus(family, kind, seed=1).document(i)) for i in range(20)]
        assert base != reseeded


@pytest.mark.parametrize(("family", "kind"), CORPORA)
def test_documents_fit_a_tiny_row(family, kind, builder):
    for split in ("train", "test"):
        documents = corpus(family, kind, split)
        for index in range(150):
            assert max(builder.lengths(documents.document(index))) <= 200
    assert builder.num_truncated == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_only_the_answer_of_a_question_is_scored(family):
    document = corpus(family, Kind.QUESTIONS).document(0)
    record = corpus(family, Kind.QUESTIONS).source[0]
    *images, question, answer = document.segments
    assert all(isinstance(image, Image) for image in images) and images
    assert question == Text(f"Question: {record['question']} Short answer:", scored=False)
    assert answer == Text(record["answer"], scored=True)


@pytest.mark.parametrize("family", FAMILIES)
def test_pages_have_few_shot_sequences_and_many_pictures(family):
    pages = records(family, Kind.INTERLEAVED, count=400)
    counts = Counter(len(pictures(page)) for page in pages)
    assert min(counts) >= 2 and max(counts) >= 8
    runs = [page for page in pages if str(page["texts"]).count("Short answer:") >= 3]
    assert len(runs) > 20


@pytest.mark.parametrize("family", FAMILIES)
def test_no_picture_of_the_test_split_is_in_the_training_split(family):
    kinds = (Kind.CAPTIONS, Kind.QUESTIONS, Kind.INTERLEAVED)
    drawn = {
        split: {
            picture.tobytes()
            for kind in kinds
            for record in records(family, kind, split, count=600)
            for picture in pictures(record)
        }
        for split in ("train", "test")
    }
    assert len(drawn["train"]) > 1000 and len(drawn["test"]) > 300
    assert not drawn["train"] & drawn["test"]


@pytest.mark.parametrize("kind", [Kind.CAPTIONS, Kind.QUESTIONS, Kind.INTERLEAVED])
def test_the_scene_alone_decides_its_split(kind, monkeypatch):
    """No seed or kind can then draw a scene of one split in the other."""
    rendered = []
    render = scenes.Scene.render

    def spy(scene):
        rendered.append(scene)
        return render(scene)

    monkeypatch.setattr(scenes.Scene, "render", spy)
    for split in ("train", "test"):
        rendered.clear()
        records("scenes", kind, split, count=100)
        assert len(rendered) >= 100
        assert all(scene.is_test == (split == "test") for scene in rendered)


def test_different_scenes_are_different_pictures():
    drawn = [record["scenes"][0] for record in records("scenes", Kind.CAPTIONS, count=500)]
    assert len({scene.render().tobytes() for scene in drawn}) == len(set(drawn)) > 450


def test_every_scan_is_in_one_split_and_every_fifth_is_held_out():
    train, test = (corpus("digits", Kind.CAPTIONS, split).source for split in ("train", "test"))
    assert (len(train), len(test)) == (1438, 359)
    scans = [scan.tobytes() for source in (train, test) for scan in source.pixels]
    assert len(set(scans)) == 1797
    assert set(Counter(test.labels)) == set(range(10))


def test_scans_use_the_whole_range_of_grays():
    pixels = corpus("digits", Kind.CAPTIONS).source.pixels
    assert pixels.dtype == np.uint8 and pixels.shape[1:] == (8, 8, 3)
    assert (pixels.min(), pixels.max()) == (0, 255)


def test_questions_about_every_scan_are_of_every_kind():
    source = corpus("digits", Kind.QUESTIONS, "test").source
    asked = Counter(
        (record["images"][0].tobytes(), record["kind"])
        for record in map(source.__getitem__, range(len(source)))
    )
    assert len(asked) == 359 * 3
    assert {kind: n for (_, kind), n in asked.items()} == {"digit": 3, "parity": 1, "size": 1}


def test_answers_about_digits_follow_from_their_labels():
    source = corpus("digits", Kind.QUESTIONS).source
    label_of = dict(zip((scan.tobytes() for scan in source.pixels), source.labels, strict=True))
    for record in records("digits", Kind.QUESTIONS, count=2000):
        label = label_of[record["images"][0].tobytes()]
        expected = {
            "digit": str(label),
            "parity": ["even", "odd"][label % 2],
            "size": "yes" if label > 4 else "no",
        }[record["kind"]]
        assert record["answer"] == expected
        assert record["caption"] == f"a handwritten digit {label}"


def test_pages_about_digits_are_true():
    source = corpus("digits", Kind.INTERLEAVED).source
    label_of = dict(zip((scan.tobytes() for scan in source.pixels), source.labels, strict=True))
    checked = Counter()
    for page in records("digits", Kind.INTERLEAVED, count=400):
        labels = [label_of[picture.tobytes()] for picture in pictures(page)]
        text = " ".join(text for text in page["texts"] if text is not None)
        if match := re.fullmatch(r"(\d) plus (\d) is (\d+)\.", text):
            a, b, total = map(int, match.groups())
            assert labels == [a, b] and total == a + b
            checked["sum"] += 1
        elif "the second is" in text:
            assert list(map(int, re.findall(r"\d", text))) == labels
            a, b = labels
            assert ("same" in text, "The first is" in text, "The second is" in text) == (
                a == b, a > b, b > a
            )  # fmt: skip
            checked["order"] += 1
        elif text.startswith("Here are"):
            *listed, largest, smallest = map(int, re.findall(r"\d", text))
            assert listed == labels and (largest, smallest) == (max(labels), min(labels))
            checked["list"] += 1
        elif "a handwritten digit" in text:
            assert list(map(int, re.findall(r"\d", text))) == labels
            checked["captions"] += 1
    assert set(checked) == {"sum", "order", "list", "captions"}
    assert min(checked.values()) > 20


def number(word: str) -> int:
    return NUMBERS.index(word)


def test_sentences_about_numbers_are_true():
    texts = [record["text"] for record in records("digits", Kind.TEXT, count=300)]
    sentences = [s for text in texts for s in re.findall(r"[^.]+\.", text.lower())]
    checked = Counter()
    for sentence in sentences:
        words = re.findall(r"\w+", sentence)
        value = [number(word) if word in NUMBERS else word for word in words]
        if "plus" in words:
            a, b, total = int(value[0]), int(value[2]), int(value[4])
            assert a + b == total
            checked["plus"] += 1
        elif "minus" in words:
            assert value[0] - value[2] == value[4]
            checked["minus"] += 1
        elif "after" in words:
            assert value[0] == value[3] + 1
            checked["after"] += 1
        elif words[1:] in (["is", "odd"], ["is", "even"]):
            assert (value[0] % 2 == 1) == (words[2] == "odd")
            checked["parity"] += 1
        elif words[1:4] == ["is", "larger", "than"]:
            assert value[0] > value[4]
            checked["larger"] += 1
    assert set(checked) == {"plus", "minus", "after", "parity", "larger"}


def read(picture: np.ndarray) -> list[tuple[str, str, float, float]]:
    """Returns (color, shape, x, y) of each shape in a picture, from the pixels alone."""
    names = [None, *scenes.COLORS]
    palette = np.array([picture[0, 0], *scenes.COLORS.values()], float)
    nearest = np.abs(picture[:, :, None] - palette).sum(-1).argmin(-1)
    found = []
    for index, name in enumerate(names):
        blobs, num_blobs = ndimage.label(nearest == index)
        for blob in range(1, num_blobs + 1) if name else ():
            ys, xs = np.nonzero(blobs == blob)
            if len(ys) < 40:  # The blended pixels of an edge can be nearer to a third color.
                continue
            found.append((name, form(ys, xs), xs.mean(), ys.mean()))
    return found


def form(ys: np.ndarray, xs: np.ndarray) -> str:
    mask = np.zeros((np.ptp(ys) + 1, np.ptp(xs) + 1), bool)
    mask[ys - ys.min(), xs - xs.min()] = True
    corner = max(2, len(mask) // 6)
    corners = [mask[:corner, :corner], mask[:corner, -corner:], mask[-corner:, :corner],
               mask[-corner:, -corner:]]  # fmt: skip
    filled = [part.mean() > 0.5 for part in corners]
    if all(filled):
        return "square"
    if filled[2] and filled[3]:
        return "triangle"
    # A circle is drawn as a ring.
    return "cross" if mask[len(mask) // 2, mask.shape[1] // 2] else "circle"


def described(shapes: list[tuple[str, str, float, float]]) -> str:
    """Writes the caption of the shapes that `read` finds."""
    kinds = {(color, shape) for color, shape, _, _ in shapes}
    if len(kinds) == 1:
        ((color, shape),) = kinds
        plural = {"cross": "crosses"}.get(shape, f"{shape}s")
        count = len(shapes)
        return f"a {color} {shape}" if count == 1 else f"{NUMBERS[count]} {color} {plural}"
    a, b = shapes
    is_row = abs(a[2] - b[2]) > abs(a[3] - b[3])
    first, second = sorted(shapes, key=lambda shape: shape[2 if is_row else 3])
    where = "left of" if is_row else "above"
    return f"a {first[0]} {first[1]} {where} a {second[0]} {second[1]}"


def test_captions_of_scenes_match_the_pixels():
    for record in records("scenes", Kind.CAPTIONS, count=500):
        assert described(read(record["image"])) == record["caption"]


def answer(question: str, pictures: list[np.ndarray]) -> str:
    """Derives the answer from the words of the question and the pixels of the pictures."""
    seen = [read(picture) for picture in pictures]
    shapes = seen[0]
    if match := re.fullmatch(r"what color (?:is|are) the (\w+)\?", question):
        return the(color for color, shape, _, _ in shapes if match[1].startswith(shape))
    if match := re.fullmatch(r"which shape is (\w+)\?", question):
        if match[1] == "shown":
            return the(shape for _, shape, _, _ in shapes)
        return the(shape for color, shape, _, _ in shapes if color == match[1])
    if question == "what shape do you see?":
        return the(shape for _, shape, _, _ in shapes)
    if match := re.fullmatch(r"how many (\w+) are there\?", question):
        count = sum(match[1] == "shapes" or match[1].startswith(shape[1]) for shape in shapes)
        return NUMBERS[count]
    if match := re.fullmatch(r"where is the (\w+) relative to the (\w+)\?", question):
        (a,), (b,) = ([s for s in shapes if s[1] == name] for name in match.groups())
        dx, dy = a[2] - b[2], a[3] - b[3]
        assert max(abs(dx), abs(dy)) > 2 * min(abs(dx), abs(dy)), "a relation that is not clear"
        if abs(dx) > abs(dy):
            return "left" if dx < 0 else "right"
        return "above" if dy < 0 else "below"
    first, second = seen
    if question == "which picture has more shapes?":
        assert len(first) != len(second)
        return "first" if len(first) > len(second) else "second"
    topic = {"do both pictures show the same color?": 0, "do both pictures show the same shape?": 1}
    is_same = the(s[topic[question]] for s in first) == the(s[topic[question]] for s in second)
    return "yes" if is_same else "no"


def the(values) -> str:
    (value,) = set(values)
    return value


def test_answers_about_scenes_match_the_pixels():
    asked = records("scenes", Kind.QUESTIONS, count=700)
    for record in asked:
        assert answer(record["question"], record["images"]) == record["answer"]
    shares = Counter(scenes.TRAINING_KINDS * 100)
    assert Counter(record["kind"] for record in asked) == shares
    held_out = Counter(
        record["kind"] for record in records("scenes", Kind.QUESTIONS, "test", count=50)
    )
    assert held_out == dict.fromkeys(scenes.QUESTION_KINDS, 10)


def test_no_answer_about_scenes_is_common():
    asked = records("scenes", Kind.QUESTIONS, "test", count=2000)
    answers = Counter(record["answer"] for record in asked)
    assert len(answers) >= 21
    assert max(answers.values()) < 0.09 * len(asked)
    for kind in scenes.QUESTION_KINDS:
        of_kind = Counter(record["answer"] for record in asked if record["kind"] == kind)
        assert max(of_kind.values()) < 1.6 * of_kind.total() / len(of_kind)


def test_pages_of_questions_about_scenes_are_true():
    checked = 0
    for page in records("scenes", Kind.INTERLEAVED, count=150):
        shown = []
        for text, image in zip(page["texts"], page["images"], strict=True):
            if image is not None:
                shown.append(image)
            elif match := re.fullmatch(r"Question: (.*) Short answer: (\w+)", text):
                assert answer(match[1], shown) == match[2]
                shown, checked = [], checked + 1
            elif match := re.fullmatch(
                r"(?:The \w+ picture shows|Here is|Now there are) (.*)\.", text
            ):
                assert described(read(shown[-1])) == match[1]
                checked += 1
    assert checked > 200


def test_shapes_stay_larger_than_a_patch_of_a_small_picture():
    """At half the size, 32 pixels, no shape is narrower than 8."""
    for record in records("scenes", Kind.CAPTIONS, count=300):
        assert all(shape.radius >= 9 for shape in record["scenes"][0].shapes)
        for shape in record["scenes"][0].shapes:
            assert shape.radius <= min(shape.x, shape.y, 63 - shape.x, 63 - shape.y)


@pytest.mark.parametrize("kind", list(Kind))
def test_reading_a_document_renders_no_scene(kind, monkeypatch):
    monkeypatch.setattr(scenes.Scene, "render", lambda scene: pytest.fail("rendered"))
    source = corpus("scenes", kind)
    assert all(source.document(index).segments for index in range(50))
