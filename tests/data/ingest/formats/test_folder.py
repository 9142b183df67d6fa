import base64
import html
import json
import shutil

import pytest

from mm1_jax.data.ingest.formats import folder as folder_module
from mm1_jax.data.ingest.formats.folder import Folder
from mm1_jax.data.readers.source_files import Unit


@pytest.fixture
def site(tmp_path):
    """A folder with pictures at its root and in a subfolder; a secret file lies outside of it."""
    site = tmp_path / "site"
    (site / "docs" / "images").mkdir(parents=True)
    (site / "a.png").write_bytes(b"a")
    (site / "docs" / "images" / "b c.png").write_bytes(b"b c")
    (site / "docs" / "empty.png").write_bytes(b"")
    (tmp_path / "secret.png").write_bytes(b"secret")
    return site


def test_documents_are_pages_in_reading_order(site, convert):
    (site / "docs" / "one.md").write_text("one\n\n![x](images/b%20c.png)\ntwo ![](../a.png#top)")
    (site / "two.html").write_text("<p>one<img src='/docs/images/b c.png?x=1'><p>two")
    (site / "three.MD").write_text("only text")
    records, rejected = convert(Folder(), site)
    assert rejected == []
    assert records == [
        {
            "id": "docs/one.md",
            "texts": ["one", None, "two", None],
            "images": [None, b"b c", None, b"a"],
            "urls": [None] * 4,
            "missing_images": 0,
        },
        {
            "id": "three.MD",
            "texts": ["only text"],
            "images": [None],
            "urls": [None],
            "missing_images": 0,
        },
        {
            "id": "two.html",
            "texts": ["one", None, "two"],
            "images": [None, b"b c", None],
            "urls": [None] * 3,
            "missing_images": 0,
        },
    ]


@pytest.mark.parametrize(
    "reference",
    [
        *("../secret.png", "../../secret.png", "/../secret.png", "%2e%2e/secret.png", "link.png"),
        *("lost.png", "empty.png", "http://x/a.png", "//x/a.png", "file:///etc/passwd", "a%00.png"),
        *("/etc/passwd", "http://[x", "", "data:image/png;base64,%", "data:text/html;base64,YQ=="),
        *("docs", "a" * 5000, "C:/a.png"),
    ],
)
def test_pictures_outside_the_folder_are_missing(site, convert, reference):
    (site / "link.png").symlink_to(site.parent / "secret.png")
    (site / "one.html").write_text(f"text<img src='{reference}'><img src=a.png>")
    (record,), _ = convert(Folder(), site)
    assert record["images"] == [None, b"a"] and record["missing_images"] == 1


def test_pictures_may_be_embedded_in_the_document(site, convert):
    data = base64.b64encode(b"inlined").decode()
    (site / "one.md").write_text(f"![](data:image/png;base64,{data})")
    (record,), _ = convert(Folder(), site)
    assert record["images"] == [b"inlined"]


def test_documents_that_are_not_pages_are_rejected_with_the_reason(site, convert, reasons):
    (site / "a.md").write_bytes(b"caf\xe9")
    (site / "b.md").write_text(" \n")
    (site / "c.md").write_text("![](lost.png)")
    (site / "d.html").write_text("&#" + "9" * 5000)
    _, rejected = convert(Folder(), site)
    found = reasons(rejected)
    assert "not UTF-8" in found["a.md"] and found["b.md"] == "an empty page"
    assert found["c.md"] == "an empty page; 1 images are missing" and "not HTML" in found["d.html"]


def test_many_documents_are_several_units(site, convert, monkeypatch):
    monkeypatch.setattr(folder_module, "_UNIT_DOCUMENTS", 2)
    for name in "abcde":
        (site / f"{name}.md").write_text(name)
    assert Folder().units(site) == [Unit(site, part) for part in range(3)]
    records, _ = convert(Folder(), site)
    assert [record["texts"] for record in records] == [[name] for name in "abcde"]


def test_a_single_document_can_be_the_source(site, convert):
    (site / "docs" / "one.md").write_text("![](images/b%20c.png) ![](../a.png)")
    (record,), _ = convert(Folder(), site / "docs" / "one.md")
    # Paths of pictures then start at the folder of the document.
    assert (record["id"], record["images"]) == ("one.md", [b"b c"])
    assert record["missing_images"] == 1


def test_a_folder_without_documents_is_an_error_that_names_the_expected_files(site):
    with pytest.raises(ValueError, match=r"expected documents in Markdown or HTML"):
        Folder().units(site)


def test_real_pages_round_trip_through_markdown_and_html(test_data, convert, tmp_path):
    lines = (test_data / "recipes" / "interleaved.jsonl").read_text().splitlines()
    pages = [json.loads(line) for line in lines[:20]]
    for number, page in enumerate(pages):
        places = list(zip(page["texts"], page["images"], strict=True))
        for _, name in places:
            if name is not None:
                (tmp_path / name).parent.mkdir(exist_ok=True)
                shutil.copyfile(test_data / "recipes" / name, tmp_path / name)
        markdown = [f"![]({name})" if text is None else text for text, name in places]
        (tmp_path / f"{number:02}.md").write_text("\n\n".join(markdown))
        of_html = [
            f"<img src='{name}'>" if text is None else f"<pre>{html.escape(text)}</pre>"
            for text, name in places
        ]
        (tmp_path / f"{number:02}.html").write_text("".join(of_html))
    records, rejected = convert(Folder(), tmp_path)
    assert (len(records), rejected) == (40, [])
    for record in records:
        page = pages[int(record["id"][:2])]
        assert [image for image in record["images"] if image] == [
            (test_data / "recipes" / name).read_bytes() for name in page["images"] if name
        ]
        # Adjacent texts become one.
        words, expected = (" ".join(filter(None, one["texts"])).split() for one in (record, page))
        assert words == expected
