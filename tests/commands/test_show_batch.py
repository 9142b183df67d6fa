import base64
import html.parser
import io
import os
import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from drawn_corpus import corpus, input_config, pair_config, stream

from mm1_jax.batch import Document, Image, Text
from mm1_jax.batch_page import markup, packed_page, pair_page
from mm1_jax.commands import show_batch as tool
from mm1_jax.commands import snapshot
from mm1_jax.data.chat_formats.base import Turn
from mm1_jax.data.chat_formats.mm1 import MM1ChatFormat
from mm1_jax.data.grid_rules import FixedGrid
from mm1_jax.data.random_view import RandomView
from mm1_jax.data.tiling import IndexMarks, Tiling

HOSTILE = (
    "</span></main><script>document.title='owned'</script>"
    "<img src=x onerror=\"document.title='owned'\"> &lt; '\" \u202edesrever \x07\n"
)
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
VOID = {"meta", "img", "input", "br"}


class Parsed(html.parser.HTMLParser):
    """The parsed content of a page; asserts that tags are closed in order."""

    def __init__(self, text: str):
        super().__init__()
        self.tags = Counter()
        self.attributes = []
        self.pieces = []
        self.targets = []
        self._open = []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag, attrs):
        self.tags[tag] += 1
        self.attributes += attrs
        if tag not in VOID:
            self._open.append((tag, dict(attrs)))
        inside = [each for each, _ in self._open]
        if "main" in inside and "span" in inside:
            {"b": self.pieces, "i": self.targets}.get(tag, []).append("")

    def handle_endtag(self, tag):
        assert self._open and self._open[-1][0] == tag, (tag, self._open, self.getpos())
        self._open.pop()

    def handle_data(self, data):
        inside = [each for each, _ in self._open]
        if "main" in inside and "span" in inside:
            texts = {"b": self.pieces, "i": self.targets}.get(inside[-1])
            if texts is not None:
                texts[-1] += data


def hostile_document(record) -> Document:
    images = tuple(Image(picture) for picture in record["pictures"])
    return Document((*images, Text(HOSTILE, scored=False), Text(record["text"])))


@pytest.fixture(scope="module")
def input():
    """An input with small shared image buffers, bad pictures and a hostile corpus."""
    pairs = corpus("pairs", max_images=1, bad_images=[1, 2, 3])
    pages = corpus("<b>pages</b>", max_images=3).set(to_document=hostile_document)
    cfg = input_config(
        streams=[stream("captions", 1, pairs), stream("interleaved", 1, pages)],
        image_group_rows=4,
        images_per_row=2,
        max_sequence_length=320,
        max_bad_fraction=0.5,
    )
    return cfg.instantiate()


MM1_FORMAT = MM1ChatFormat.default_config().set(system="Be brief.").instantiate()


def chat_document(record) -> Document:
    """A conversation of two answers, the first of which is not scored."""
    images = [Image(picture) for picture in record["pictures"]]
    return MM1_FORMAT.document(
        [
            Turn("user", (*images, HOSTILE)),
            Turn("assistant", (record["text"],), is_scored=False),
            Turn("user", ("and <s> now?",)),
            Turn("assistant", (record["text"],)),
        ]
    )


@pytest.fixture(scope="module")
def chat_input():
    """An input of conversations with pictures in two tiles and an overview, with index marks."""
    pages = corpus("chats", max_images=2, bad_images=[1]).set(to_document=chat_document)
    cfg = input_config(
        streams=[stream("chats", 1, pages)],
        tiling=Tiling.default_config().set(
            rule=FixedGrid.default_config().set(columns=2, rows=1),
            marks=IndexMarks.default_config(),
        ),
        max_sequence_length=640,
        max_images=12,
        max_bad_fraction=0.5,
    )
    return cfg.instantiate()


def test_views_of_a_picture_stand_in_their_grid_and_every_position_is_shown(chat_input):
    made, parsed, text = page(chat_input, 1, range(2))
    batch, images = made.batch, [image for row in made.images for image in row]
    pictures = [image for image in images if not image.continues]
    tiled = sum(image.view is not None and not image.continues for image in images)
    assert len(images) == np.sum(batch.tokens == chat_input.tokenizer.image_token) // (
        chat_input.num_image_tokens
    )
    assert text.count('class="views"') == tiled > 0 and len(pictures) < len(images)
    assert text.count("one picture: 2 x 1 tiles and an overview") == tiled
    for place in ("1/1", "1/2", "1/3/span 1"):
        assert text.count(f'style="grid-area:{place}"') == tiled
    piece = markup.piece_of(chat_input.tokenizer)
    found = []
    for shown in parsed.pieces:
        count = re.fullmatch(r"(\d+) x <image>", shown)
        found += ["<image>"] * int(count[1]) if count else [shown]
    expected = [piece(int(token)) for token in batch.tokens[batch.segment_ids > 0]]
    assert found == [html.unescape(markup.visible(each)) for each in expected]
    assert parsed.tags["img"] == np.sum(batch.image_index >= 0)


def test_markup_answers_and_stops_of_a_conversation_are_marked(chat_input):
    made, _, text = page(chat_input, 0, range(2))
    batch, tokenizer = made.batch, chat_input.tokenizer
    spans = re.findall(
        r'<span class="(t[^"]*)" title="[^"]*"><small>\d+</small><b>([^<]*)</b>', text
    )

    def marked(kind: str) -> str:
        return "".join(html.unescape(b) for kinds, b in spans if kind in kinds.split())

    num_documents = int(batch.segment_ids.max(axis=1).sum())
    one = "Be brief. User: Assistant: User: Assistant:"
    assert marked("m").replace(" ", "") in {
        one.replace("Be brief.", "").replace(" ", "") * num_documents,
        one.replace(" ", "") * num_documents,
    }
    # The second answer of each conversation is scored, and so is its stop, which is no input.
    answers = "".join(
        markup.piece_of(tokenizer)(int(token))
        for row in range(len(batch.tokens))
        for token in batch.targets[row][batch.loss_mask[row]]
        if token != tokenizer.eos
    )
    assert marked("a") == answers
    assert text.count("<i class=stop>") == num_documents == text.count(f">{'&lt;eos&gt;'}</i>")
    assert "markup of the chat format" in text


def page(input, step: int, rows: range) -> tuple[packed_page.MadeRows, Parsed, str]:
    made = packed_page.make_rows(input, step, rows)
    text = packed_page.PackedPage(input, made, rows, title="<drawn>", step=step).text()
    return made, Parsed(text), text


def test_rows_of_pairs_show_picture_text_and_corpus():
    cfg = pair_config(max_bad_fraction=0.5, augmentation=RandomView.default_config().set(flip=0.5))
    cfg.streams[0].corpora[0].corpus.source.bad_records = [*range(0, 60, 2)]
    input = cfg.instantiate()
    batches = input.iterator()
    *_, batch = (next(batches) for _ in range(3))
    batches.close()
    text = pair_page.PairPage(input, 2, range(8), title="<drawn>").text()
    parsed, piece = Parsed(text), markup.piece_of(input.tokenizer)
    used = np.flatnonzero(batch.corpus_ids >= 0)
    assert 0 < len(used) < 8 == parsed.tags["details"]
    found = re.findall(r'src="data:image/png;base64,([^"]+)"', text)
    for b, data in zip(used, found, strict=True):
        pixels = np.asarray(PIL.Image.open(io.BytesIO(base64.b64decode(data))))
        np.testing.assert_array_equal(pixels, batch.images[b])
    tokens = [piece(int(x)) for b in used for x in batch.tokens[b, : batch.lengths[b]]]
    assert tokens.count("<bos>") == tokens.count("<eos>") == len(used)
    assert parsed.pieces == [html.unescape(markup.visible(each)) for each in tokens]
    for b, row in enumerate(text.split("<details")[1:]):
        (record,) = input.plan.row(2, b).records
        assert f"<b>{input.corpus_names[record.corpus]}</b>" in row
        assert f"record {record.index:,} in epoch {record.epoch}" in row
        assert ("no record: " in row) == (b not in used)


def test_the_rows_are_those_of_training(input):
    batches = input.iterator()
    for _ in range(3):
        expected = next(batches)
    made = packed_page.make_rows(input, 2, range(5, 7))
    assert made.rows == range(4, 8)
    np.testing.assert_array_equal(made.batch.tokens, expected.tokens[4:])
    np.testing.assert_array_equal(made.batch.image_index, expected.image_index[4:])
    np.testing.assert_array_equal(made.batch.images, expected.images[made.first_slot :])


def test_every_token_and_scored_target_is_shown_in_order(input):
    made, parsed, _ = page(input, 1, range(8))
    batch, piece = made.batch, markup.piece_of(input.tokenizer)
    expected = []
    for tokens, segments in zip(batch.tokens, batch.segment_ids, strict=True):
        expected += [piece(int(token)) for token in tokens[segments > 0]]
    # All positions of a picture but the last are one piece, which shows their number.
    found = []
    for text in parsed.pieces:
        count = re.fullmatch(r"(\d+) x <image>", text)
        found += ["<image>"] * int(count[1]) if count else [text]
    assert found == [html.unescape(markup.visible(text)) for text in expected]
    scored = [piece(int(token)) for token in batch.targets[batch.loss_mask]]
    assert parsed.targets == scored


def test_the_pieces_of_a_text_add_up_to_the_text(input):
    tokenizer = input.tokenizer
    text = "two circles, a  square: <image>"
    pieces = [markup.piece_of(tokenizer)(token) for token in tokenizer.encode(text)]
    assert "".join(pieces).removeprefix(" ") == text
    unknown = 3
    specials = (tokenizer.bos, tokenizer.eos, tokenizer.image_token, unknown)
    names = [markup.piece_of(tokenizer)(token) for token in specials]
    assert names == ["<bos>", "<eos>", "<image>", "<3>"]


def test_every_picture_is_embedded_bit_for_bit(input):
    made, parsed, text = page(input, 1, range(8))
    batch = made.batch
    found = re.findall(r'src="data:image/png;base64,([^"]+)"', text)
    expected = [int(i) for i in batch.image_index.flat if i >= 0]
    assert len(found) == parsed.tags["img"] == len(expected) > 0
    for data, index in zip(found, expected, strict=True):
        pixels = np.asarray(PIL.Image.open(io.BytesIO(base64.b64decode(data))))
        np.testing.assert_array_equal(pixels, batch.images[index])
    places = np.sum((batch.tokens == input.tokenizer.image_token) & (batch.segment_ids > 0))
    missing = places // input.num_image_tokens - len(found)
    assert text.count('class="none"') == missing > 0


def test_documents_padding_and_corpora_are_named(input):
    made, parsed, text = page(input, 0, range(4, 8))
    batch = made.batch
    assert text.count('class="document"') == batch.segment_ids.max(axis=1).sum()
    assert text.count('class="padding"><span>') == np.sum(batch.segment_ids[:, -1] == 0)
    assert parsed.tags["details"] == 4
    filled = np.mean(batch.segment_ids > 0)
    assert f"{filled:.1%}" in text
    assert f"{int(batch.loss_mask.sum()):,} targets" in text


def test_a_hostile_document_is_escaped(input):
    _, parsed, text = page(input, 0, range(8))
    assert not {"script", "iframe", "object", "link", "base", "form"} & parsed.tags.keys()
    assert not any(name.startswith("on") for name, _ in parsed.attributes)
    assert all(
        value.startswith("data:image/png") for name, value in parsed.attributes if name == "src"
    )
    assert "<title>&lt;drawn&gt;, step 0</title>" in text
    assert "<b>pages" not in text and "&lt;b&gt;pages" in text
    # Invisible characters, and characters that reverse the text direction.
    assert markup.visible("\u202e\x07\n") == r"\u202e\x07\n"
    assert "\u202e" not in text and "\x07" not in text
    assert "default-src 'none'" in text


def test_a_file_is_written_and_named(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    assert tool.main(["--module=drawn_experiment", "--config=drawn", "--step=1", "--rows=:2"]) == 0
    assert capsys.readouterr().out == "drawn_step_1.html\n"
    assert Parsed(Path("drawn_step_1.html").read_text()).tags["details"] == 2
    assert tool.main(["--module=drawn_experiment", "--config=drawn", "--rows=7:9"]) == 2
    assert "--rows=7:9" in capsys.readouterr().err


def test_a_snapshot_shows_the_same_as_its_config(monkeypatch, tmp_path, capsys):
    config = ["--module=drawn_experiment", "--config=drawn"]
    pages = [tmp_path / f"{name}.html" for name in ("config", "ids", "rows")]
    assert tool.main([*config, "--step=1", f"--output={pages[0]}"]) == 0
    for page in pages[1:]:
        folder = tmp_path / page.stem
        made = [*config, "--steps=2", f"--output={folder}", f"--form={page.stem}"]
        assert snapshot.main(made) == 0
        shown = [*config, f"--config.input.snapshot={folder}"]
        assert tool.main([*shown, "--step=1", f"--output={page}"]) == 0
        assert page.read_text() == pages[0].read_text()
        assert tool.main([*shown, "--step=2"]) == 2
        assert "ends after 2 steps" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [("--rows=3:3",), ("--rows=x",), ("--step=-1",)])
def test_invalid_rows_and_steps_are_rejected(capsys, arguments):
    with pytest.raises(SystemExit):
        tool.parse(["--config=drawn", *arguments])
    assert arguments[0].partition("=")[2] in capsys.readouterr().err


def test_a_browser_renders_the_page_and_runs_no_script(input, tmp_path):
    browser = os.environ.get("MM1_BROWSER") or next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip("no Chromium is found; MM1_BROWSER names one")
    (tmp_path / "page.html").write_text(page(input, 0, range(8))[2])
    address = (tmp_path / "page.html").as_uri()

    def run(*options: str) -> str:
        flags = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars")
        folder = f"--user-data-dir={tmp_path / 'profile'}"
        result = subprocess.run(
            [browser, *flags, folder, *options, address],
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        )
        return result.stdout

    dom = run("--dump-dom")
    assert "<title>&lt;drawn&gt;, step 0</title>" in dom
    assert "<script" not in dom
    run("--window-size=1200,900", f"--screenshot={tmp_path / 'page.png'}")
    picture = np.asarray(PIL.Image.open(tmp_path / "page.png").convert("RGB"))
    assert picture.shape == (900, 1200, 3)
    # Documents are tinted, and scored targets have green bars; without its style, a page has few
    # colors.
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 200
