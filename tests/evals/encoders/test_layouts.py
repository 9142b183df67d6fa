"""Data sets are read from the layouts that users have; faults name the file and the fix."""

from pathlib import Path

import pytest
from picture_sets import COLORS, picture, write_class_folders, write_json, write_shards

from mm1_jax.evals.encoders import layouts, prompts
from mm1_jax.evals.encoders.layouts import PictureFiles

NAMES = "\n".join(COLORS)


def files(path: Path, **fields) -> PictureFiles:
    return PictureFiles.default_config().set(path=str(path), **fields).instantiate()


def samples(number: int) -> list[dict[str, bytes]]:
    return [
        {"png": picture(list(COLORS)[i % 3], seed=i), "cls": str(i % 3).encode()}
        for i in range(number)
    ]


def test_class_folders_have_labels_in_sorted_order_and_names_from_folders_or_a_file(tmp_path):
    source = files(write_class_folders(tmp_path, number=2))
    data = source.labeled("test")
    assert data.class_names == ("dark blue", "dark green", "dark red")
    assert data.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert str(data.pictures[5].data) == str(tmp_path / "val" / "dark_red" / "1.png")
    renamed = tmp_path / "val" / "dark_red" / "1.png"
    renamed = renamed.rename(renamed.with_name("9.png"))
    assert source.labeled("test").fingerprint() != data.fingerprint()
    assert data.templates == prompts.DEFAULT_TEMPLATES and "as there is no file" in data.about
    # The same without folders of splits; names by line, or by folder.
    (tmp_path / "val" / "classnames.txt").write_text("b\ng\nr\n")
    (tmp_path / "val" / "zeroshot_classification_templates.txt").write_text("one {c}\ntwo {}\n")
    flat = files(tmp_path / "val").labeled("test")
    assert flat.class_names == ("b", "g", "r") and flat.templates == ("one {c}", "two {c}")
    assert flat.labels.tolist() == data.labels.tolist()
    named = tmp_path / "names.txt"
    named.write_text("dark_red crimson\ndark_blue navy blue\ndark_green moss\n")
    data = files(tmp_path, class_names_file=str(named)).labeled("test")
    assert data.class_names == ("navy blue", "moss", "crimson")


def test_shards_of_clip_benchmark_have_labels_or_captions(tmp_path):
    labeled = write_shards(
        tmp_path / "labeled",
        [samples(4), samples(2)],
        classnames=NAMES,
        zeroshot_classification_templates="a {c} one\n{c}",
    )
    data = files(labeled).labeled("test")
    assert data.labels.tolist() == [0, 1, 2, 0, 0, 1] and len(data.templates) == 2
    assert data.pictures[4].data() == samples(2)[0]["png"]
    captioned = write_shards(
        tmp_path / "captioned",
        [[{"jpg": picture("red", 0), "txt": b"a red one\nred\n"}, {"webp": b"", "txt": b"x"}]],
        dataset_type="retrieval\n",
    )
    source = files(captioned)
    assert source.has_captions and not files(labeled).has_captions
    assert list(source.captioned().captions) == [("a red one", "red"), ("x",)]


def test_captions_come_from_the_files_of_karpathy_coco_blip_and_flickr30k(tmp_path):
    for name in ("val2014/a.jpg", "val2014/b.jpg"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(picture("red", 0))
    sentences = [{"raw": "one"}, {"raw": "two"}]
    contents = {
        "dataset_coco.json": {
            "images": [
                {"filepath": "val2014", "filename": f"{name}.jpg", "split": split, "cocoid": 1}
                | {"sentences": sentences}
                for name, split in (("a", "test"), ("b", "test"), ("c", "train"))
            ]
        },
        "coco_test_karpathy.json": {
            "images": [{"id": 7, "file_name": "a.jpg"}, {"id": 8, "file_name": "b.jpg"}],
            "annotations": [
                {"image_id": i, "caption": text} for text in ("one", "two") for i in (7, 8)
            ],
        },
        "coco_karpathy_test.json": [
            {"image": f"val2014/{name}.jpg", "caption": ["one", "two"]} for name in "ab"
        ],
    }
    for name, content in contents.items():
        data = files(write_json(tmp_path / name, content)).captioned()
        assert list(data.captions) == [("one", "two")] * 2, name
        assert [str(image.data) for image in data.pictures] == [
            str(tmp_path / "val2014" / f"{each}.jpg") for each in "ab"
        ]
    text = tmp_path / "flickr30k_test_karpathy.txt"
    text.write_text("image,caption\na.jpg,one, with a comma\na.jpg,two\nb.jpg, three\n")
    assert list(files(text).captioned().captions) == [("one, with a comma", "two"), ("three",)]
    with pytest.raises(ValueError, match="several files of captions"):
        files(tmp_path).captioned()


def test_names_and_templates_of_imagenet_come_from_an_installed_open_clip(tmp_path, monkeypatch):
    package = tmp_path / "site" / "open_clip"
    package.mkdir(parents=True)
    # Reading the file must not import the package, which needs torch.
    (package / "__init__.py").write_text("raise ImportError")
    (package / "zero_shot_metadata.py").write_text(
        "OPENAI_IMAGENET_TEMPLATES = (\n    lambda c: f'a bad photo of a {c}.',\n"
        "    lambda c: f'itap of my {c}.',\n)\n"
        "IMAGENET_CLASSNAMES = ('tench', 'great white shark')\n"
    )
    for name in ("n01440764", "n01484850"):
        (tmp_path / "data" / "val" / name).mkdir(parents=True)
        (tmp_path / "data" / "val" / name / "a.JPEG").write_bytes(picture("red", 0))
    source = files(tmp_path / "data")
    with pytest.raises(ValueError, match="WordNet ids without names; write .*classnames.txt"):
        source.labeled("test")
    monkeypatch.setattr(layouts, "_IMAGENET", 2)
    with pytest.raises(ValueError, match="pip install open_clip_torch"):
        source.labeled("test")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    data = source.labeled("test")
    assert data.class_names == ("tench", "great white shark")
    assert data.templates == ("a bad photo of a {c}.", "itap of my {c}.")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda at: (at / "test" / "1.tar").unlink(), r"1\.tar: no such file, but nshards.txt"),
        (lambda at: (at / "test" / "nshards.txt").write_text("two"), "expected the number of"),
        (lambda at: (at / "classnames.txt").unlink(), "no classnames.txt, with the name"),
        (
            lambda at: (at / "classnames.txt").write_text("a\nb"),
            "sample s0002: label '2'; expected",
        ),
        (
            lambda at: (at / "zeroshot_classification_templates.txt").write_text("a photo"),
            r"templates.txt: template 1 is 'a photo'; expected \{c\} once",
        ),
        (
            lambda at: (at / "test" / "0.tar").write_bytes(
                (at / "test" / "0.tar").read_bytes()[:900]
            ),
            r"download .*0\.tar again",
        ),
        (lambda at: (at / "dataset_type.txt").write_text("multilabel"), "expected classification"),
        (lambda at: (at / "dataset_type.txt").write_text("retrieval"), r"no member \.txt; it has"),
    ],
)
def test_damaged_shards_are_named(change, message, tmp_path):
    folder = write_shards(
        tmp_path / "set",
        [samples(4), samples(2)],
        classnames=NAMES,
        zeroshot_classification_templates="{c}",
    )
    change(folder)
    with pytest.raises(ValueError, match=message):
        source = files(folder)
        source.captioned() if source.has_captions else source.labeled("test")


def test_missing_folders_pictures_and_captions_are_named(tmp_path):
    with pytest.raises(ValueError, match="no such file or folder; give the folder"):
        files(tmp_path / "x")
    write_class_folders(tmp_path / "set", number=1)
    with pytest.raises(ValueError, match="no captions: expected dataset_type.txt"):
        files(tmp_path / "set").captioned()
    with pytest.raises(ValueError, match="no folder train, whose pictures are the train split"):
        files(tmp_path / "set" / "val").labeled("train")
    (tmp_path / "set" / "val" / "other").mkdir()
    with pytest.raises(ValueError, match="the classes other are not in .*train"):
        files(tmp_path / "set").labeled("test")
    content = [{"image": "a.jpg", "caption": "one"}, {"image": "b.jpg", "caption": "two"}]
    path = write_json(tmp_path / "captions.json", content)
    with pytest.raises(ValueError, match="2 of 2 pictures are not below .* the first a.jpg"):
        files(path).captioned()
    path.write_text('[{"image": "a.jpg"}]')
    with pytest.raises(ValueError, match="record 1.*no field 'caption'"):
        files(path).captioned()
