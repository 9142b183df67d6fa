import json

import pytest

from mm1_jax.data.ingest.formats.coco_captions import CocoCaptions


def coco(images, annotations):
    return {
        "info": {"year": 2017},
        "images": images,
        "licenses": [{"id": 1}],
        "annotations": annotations,
    }


def image(id, **fields):
    return {"id": id, "file_name": f"{id:04}.jpg", "coco_url": f"http://x/{id}"} | fields


def caption(image_id, text):
    return {"image_id": image_id, "id": 7, "caption": text}


@pytest.fixture
def folder(tmp_path):
    """A folder in the layout of COCO: `annotations` beside the folder of the split."""
    (tmp_path / "annotations").mkdir()
    (tmp_path / "val2017").mkdir()
    for id in range(4):
        (tmp_path / "val2017" / f"{id:04}.jpg").write_bytes(b"picture %d" % id)
    return tmp_path


def write(folder, value, name="captions_val2017.json"):
    text = value if isinstance(value, str) else json.dumps(value)
    (folder / "annotations" / name).write_text(text)


def test_a_picture_has_all_of_its_captions(folder, convert):
    annotations = [caption(1, "a"), caption(0, "b"), caption(1, "c"), caption(1, " ")]
    write(folder, coco([image(0), image(1)], annotations))
    write(folder, coco([image(0)], [{"image_id": 0, "bbox": []}]), "instances_val2017.json")
    records, rejected = convert(CocoCaptions(), folder)
    assert rejected == []
    assert records[1] == {
        "id": "captions_val2017.json:images:1",
        "image": b"picture 1",
        "captions": [{"text": "a", "kind": "caption"}, {"text": "c", "kind": "caption"}],
        "url": "http://x/1",
        "source_id": "1",
    }
    assert [len(record["captions"]) for record in records] == [1, 2]


def test_invalid_entries_are_rejected_with_the_reason(folder, convert, reasons):
    images = [
        image(0),
        image(1),
        image(2, file_name="lost.jpg"),
        image(3, file_name="../annotations/captions_val2017.json"),
        image(0),
        {"id": None},
        7,
    ]
    annotations = [
        *(caption(0, "a"), caption(2, "b"), caption(3, "c"), caption(99, "d"), caption(99, "e")),
        *(caption(0, 7), caption([], "x"), {"image_id": 0}, "text"),
    ]
    write(folder, coco(images, annotations))
    (record,), rejected = convert(CocoCaptions(), folder)
    assert record["source_id"] == "0"
    found = {key.removeprefix("captions_val2017.json:"): r for key, r in reasons(rejected).items()}
    expected = {
        "images:1": "no caption left for image 1",
        "images:2": "image 'lost.jpg': there is no such file",
        "images:3": "lies outside the folder",
        "images:4": "no caption left for image 0",
        "images:5": "id is None",
        "images:6": "a int, expected a JSON object",
        "annotations:5": "caption: a int",
        "annotations:6": "image_id is []",
        "annotations:7": "no caption",
        "annotations:8": "a str, expected a JSON object",
        "image_id 99": "2 captions of an image that is not listed",
    }
    assert found.keys() == expected.keys()
    for key, reason in expected.items():
        assert reason in found[key]


def test_a_truncated_file_is_reported_once(folder, convert):
    text = json.dumps(coco([image(0), image(1)], [caption(0, "a"), caption(1, "b")]))
    write(folder, text[:-20])
    (record,), rejected = convert(CocoCaptions(), folder)
    assert record["source_id"] == "0"
    assert sum("what follows is not read" in one.reason for one in rejected) == 1
    assert len(rejected) == 2


@pytest.mark.parametrize("where", ["annotations", "annotations/images", "images/val2017", "images"])
def test_pictures_are_found_near_the_file(tmp_path, convert, where):
    (tmp_path / "annotations").mkdir()
    (tmp_path / where).mkdir(parents=True, exist_ok=True)
    (tmp_path / where / "0000.jpg").write_bytes(b"here")
    write(tmp_path, coco([image(0)], [caption(0, "a")]))
    ((record,), _) = convert(CocoCaptions(), tmp_path / "annotations")
    assert record["image"] == b"here"


def test_without_pictures_the_error_names_the_option(tmp_path):
    (tmp_path / "annotations").mkdir()
    write(tmp_path, coco([image(5)], [caption(5, "a")]))
    with pytest.raises(ValueError, match=r"set images to a folder or .tar that has '0005.jpg'"):
        CocoCaptions().units(tmp_path)
    with pytest.raises(ValueError, match="neither a folder nor a .tar"):
        CocoCaptions(images=tmp_path / "lost").units(tmp_path)


@pytest.mark.parametrize("content", ["{", "[]", '{"annotations": [7]}', '{"images": []}', ""])
def test_json_of_another_layout_is_an_error(tmp_path, content):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(ValueError, match="expected a JSON file of COCO captions"):
        CocoCaptions().units(tmp_path)
