"""Reads the layouts in which data sets of pictures are distributed.

Class folders (ImageNet by WordNet id):

    DIR/train/n01440764/*.JPEG   DIR/val/n01440764/*.JPEG      or DIR/n01440764/*.JPEG
    DIR/classnames.txt  DIR/zeroshot_classification_templates.txt        one text per line

CLIP_benchmark's webdatasets:

    DIR/test/nshards.txt  DIR/test/0.tar  DIR/train/...        .jpg, .png or .webp with .cls or .txt
    DIR/dataset_type.txt                                       "retrieval": captions, one per line
    DIR/classnames.txt  DIR/zeroshot_classification_templates.txt

Captions with a folder of pictures (COCO, Flickr30k):

    DIR/dataset_coco.json        Karpathy's file: images with `filename`, `split` and `sentences`
    DIR/coco_test_karpathy.json  `images` and `annotations`, as COCO's; or a list of entries with
                                 `image` and `caption`
    DIR/flickr30k_test_karpathy.txt                            a header, then lines `a.jpg,caption`
    DIR/val2014/*.jpg  DIR/flickr30k-images/*.jpg  DIR/*.jpg
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mm1_jax.config import REQUIRED, Required, config_class, derived
from mm1_jax.data.readers.entries import Documents, Rejected
from mm1_jax.data.readers.image_files import ImageFolder
from mm1_jax.data.readers.source_files import documents_below, is_hidden
from mm1_jax.data.readers.tar import Member, read_member
from mm1_jax.data.readers.webdataset import IMAGES, samples
from mm1_jax.data.record_files import BadRecord
from mm1_jax.evals.encoders.pictures import (
    CaptionedPictures,
    FolderPictures,
    LabeledPictures,
    PictureSource,
    TarPictures,
)
from mm1_jax.evals.encoders.prompts import (
    DEFAULT_TEMPLATES,
    open_clip_prompts,
    read_class_names,
    read_templates,
    read_texts,
)
from mm1_jax.evals.predictions.entries import Entry, read_entries
from mm1_jax.evals.predictions.files import read_file, read_text
from mm1_jax.field_types import NonEmpty

CLASS_NAMES, TEMPLATES = "classnames.txt", "zeroshot_classification_templates.txt"
_TYPE, _NUM_SHARDS = "dataset_type.txt", "nshards.txt"
_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".ppm", ".tif", ".tiff")
# Names of the folders of each split; None is the folder of the data set itself.
_SPLITS = {"test": ("test", "val", "validation", None), "train": ("train",)}
# Folders below the file of captions in which publishers keep its pictures.
_PICTURE_FOLDERS = (
    *("", "images", "flickr30k-images", "flickr30k_images", "Images"),
    *("val2014", "train2014", "test2014", "val2017", "train2017"),
)
_WORDNET_ID = re.compile(r"n\d{8}")
_IMAGENET = 1000


class PictureFiles(PictureSource):
    """A folder or a file of captions in one of the layouts of this module."""

    @config_class
    class Config(PictureSource.Config):
        path: Required[NonEmpty] = REQUIRED
        data_dir: str | None = derived(None)  # `input.data_dir`
        # Files of class names and of templates; None reads those in the folder. For ImageNet, the
        # installed open_clip is read if there are none.
        class_names_file: str | None = None
        templates_file: str | None = None
        # Name of the data set in JSON files of CLIP_benchmark; None is the name of the folder.
        key: str | None = None
        # Split of a file of captions that has several.
        captions_split: str = "test"

    def __init__(self, cfg: Config):
        super().__init__(cfg)
        self.path = Path(cfg.data_dir or ".", cfg.path)
        if not self.path.exists():
            raise ValueError(f"{self.path}: no such file or folder; give the folder of a data set")
        self._key = cfg.key or self.path.name

    @property
    def has_captions(self) -> bool:
        return self._captions_file() is not None or self._type() == "retrieval"

    def labeled(self, split: str) -> LabeledPictures:
        if self.has_captions:
            raise ValueError(f"{self.path}: has captions, not classes; retrieval evaluates them")
        folder = self._folder(split)
        if folder is None:
            raise ValueError(
                f"{self.path}: no folder {' or '.join(filter(None, _SPLITS[split]))}, whose "
                f"pictures are the {split} split; unpack it there"
            )
        if (folder / _NUM_SHARDS).exists():
            return self._labeled_shards(folder)
        return self._class_folders(folder, split)

    def captioned(self) -> CaptionedPictures:
        if (file := self._captions_file()) is not None:
            return captions_in_file(file, self._config.captions_split)
        folder = self._folder("test")
        if folder is None or self._type() != "retrieval":
            raise ValueError(
                f"{self.path}: no captions: expected {_TYPE} with `retrieval` in a webdataset of "
                "CLIP_benchmark, or a .json or .txt file of captions"
            )
        places, captions = [], []
        for where, path, members, file in _samples(folder):
            text = _text(file, _one(members, ("txt",), where), where)
            own = tuple(line for line in text.splitlines() if line.strip())
            if not own:
                raise ValueError(
                    f"{where}: no caption; write one per line, or leave the sample out"
                )
            places.append((path, _one(members, IMAGES, where)))
            captions.append(own)
        return CaptionedPictures(TarPictures(places), captions)

    def _captions_file(self) -> Path | None:
        if self.path.is_file():
            return self.path
        names = [path.name for path in self.path.iterdir() if not is_hidden(path.name)]
        found = sorted(
            name
            for name in names
            if re.fullmatch(r"dataset_(coco|flickr\w+)\.json|.*karpathy.*\.(json|txt|csv)", name)
        )
        if len(found) > 1:
            raise ValueError(
                f"{self.path}: several files of captions, {', '.join(found)}; give the path of one"
            )
        return self.path / found[0] if found else None

    def _type(self) -> str:
        path = self.path / _TYPE
        if not path.is_file():
            return "classification"
        kind = read_text(path).strip().lower()
        if kind not in ("classification", "retrieval"):
            raise ValueError(f"{path}: {kind!r}; expected classification or retrieval")
        return kind

    def _folder(self, split: str) -> Path | None:
        """Returns the folder of a split; None if there is none."""
        if self.path.is_file():
            return None
        for name in _SPLITS[split]:
            folder = self.path / (name or "")
            if (folder / _NUM_SHARDS).is_file() or (folder.is_dir() and _class_names_in(folder)):
                return folder
        return None

    def _labeled_shards(self, folder: Path) -> LabeledPictures:
        names_file = self._file("class_names_file", CLASS_NAMES)
        if names_file is None:
            raise ValueError(f"{self.path}: no {CLASS_NAMES}, with the name of a class per line")
        names = tuple(read_texts(names_file, self._key))
        templates, about = self._templates(is_imagenet=len(names) == _IMAGENET)
        places, labels = [], []
        for where, path, members, file in _samples(folder):
            label = _text(file, _one(members, ("cls",), where), where).strip()
            if not label.isdecimal() or int(label) >= len(names):
                raise ValueError(
                    f"{where}: label {label[:20]!r}; expected 0 to {len(names) - 1}, the line of a "
                    f"class in {names_file}"
                )
            places.append((path, _one(members, IMAGES, where)))
            labels.append(int(label))
        about = f"class names of {names_file}; {about}"
        return LabeledPictures(TarPictures(places), np.array(labels), names, templates, about)

    def _class_folders(self, folder: Path, split: str) -> LabeledPictures:
        # Labels are those of the train split, if there is one, so that both splits agree.
        train = self._folder("train")
        folders = _class_names_in(train or folder)
        if unknown := set(_class_names_in(folder)) - set(folders):
            raise ValueError(
                f"{folder}: the classes {', '.join(sorted(unknown)[:5])} are not in {train}"
            )
        files, labels = [], []
        for name in _class_names_in(folder):
            found = documents_below(folder / name, _SUFFIXES)
            files += [path.relative_to(folder).as_posix() for path in found]
            labels += [folders.index(name)] * len(found)
        if not files:
            raise ValueError(
                f"{folder}: no pictures in its folders; expected {', '.join(_SUFFIXES)}"
            )
        names, about = self._names_of(folders)
        is_imagenet = all(map(_WORDNET_ID.fullmatch, folders))
        templates, about_templates = self._templates(is_imagenet)
        return LabeledPictures(
            FolderPictures(folder, files),
            np.array(labels),
            names,
            templates,
            f"{about}; {about_templates}",
        )

    def _names_of(self, folders: Sequence[str]) -> tuple[tuple[str, ...], str]:
        if (file := self._file("class_names_file", CLASS_NAMES)) is not None:
            return read_class_names(file, folders, self._key), f"class names of {file}"
        if not all(map(_WORDNET_ID.fullmatch, folders)):
            return tuple(name.replace("_", " ") for name in folders), "class names of the folders"
        if len(folders) == _IMAGENET and (prompts := open_clip_prompts()) is not None:
            return prompts[0], "class names of open_clip"
        raise ValueError(
            f"{self.path}: its {len(folders)} classes are WordNet ids without names; write "
            f"{self.path / CLASS_NAMES} with a line `ID NAME` for each, or give it with "
            "--class_names. For the 1,000 of ImageNet, `pip install open_clip_torch` is enough"
        )

    def _templates(self, is_imagenet: bool) -> tuple[tuple[str, ...], str]:
        if (file := self._file("templates_file", TEMPLATES)) is not None:
            found = read_templates(file, self._key)
            return found, f"{len(found)} templates of {file}"
        if not is_imagenet:
            return DEFAULT_TEMPLATES, f"the template {DEFAULT_TEMPLATES[0]!r}, as there is no file"
        if (prompts := open_clip_prompts()) is not None:
            return prompts[1], f"{len(prompts[1])} templates of open_clip"
        raise ValueError(
            f"{self.path}: no templates for prompts; write {self.path / TEMPLATES}, one with {{c}} "
            "per line, give it with --templates, or `pip install open_clip_torch`, which has "
            "OpenAI's 80"
        )

    def _file(self, field: str, name: str) -> Path | None:
        """Returns the file that the config names, else that of the folder, if it exists."""
        cfg = self._config
        if (given := getattr(cfg, field)) is not None:
            return Path(cfg.data_dir or ".", given)
        return self.path / name if (self.path / name).is_file() else None


def captions_in_file(file: Path, split: str) -> CaptionedPictures:
    """Reads the captions of a file and finds their pictures in the folder beside it."""
    by_name: dict[str, list[str]] = {}
    for name, captions in _captions(file, split):
        by_name.setdefault(name, []).extend(captions)
    folder = ImageFolder(file.parent, follow_links=True)
    files, lacking = [], []
    for name in by_name:
        # Karpathy's file has the folder of a picture, others only its name.
        tries = [f"{place}/{name}".lstrip("/") for place in _PICTURE_FOLDERS]
        tries += [f"{place}/{Path(name).name}".lstrip("/") for place in _PICTURE_FOLDERS]
        found = next((each for each in tries if folder.has(each)), None)
        if found is None:
            lacking.append(name)
        else:
            files.append(found)
    if lacking:
        raise ValueError(
            f"{file}: {len(lacking)} of {len(by_name)} pictures are not below {file.parent}, the "
            f"first {lacking[0]}; unpack them there"
        )
    return CaptionedPictures(
        FolderPictures(file.parent, files), [tuple(captions) for captions in by_name.values()]
    )


def _captions(file: Path, split: str) -> Iterator[tuple[str, list[str]]]:
    """Yields the name of each picture and its captions."""
    if file.suffix in (".txt", ".csv"):
        yield from _caption_lines(file)
        return
    content: Any = read_file(file)
    if not isinstance(content, dict):
        for entry in read_entries(file):
            yield entry.text("image", "filename"), entry.texts("caption", "raw", "captions")
        return
    images = _entries(content, "images", file)
    if "annotations" in content:
        names = {entry.key("id"): entry.text("file_name") for entry in images}
        for entry in _entries(content, "annotations", file):
            if (key := entry.key("image_id")) not in names:
                raise ValueError(f"{entry.where}: no image has the id {key}")
            yield names[key], [entry.text("caption")]
        return
    splits = set()
    for entry in images:
        splits.add(found := entry.text("split"))
        if found == split:
            place = f"{entry.text('filepath')}/" if entry.has("filepath") else ""
            sentences = entry.get("sentences", expected="a list of objects with 'raw'")
            yield place + entry.text("filename"), [one["raw"] for one in sentences]
    if split not in splits:
        raise ValueError(f"{file}: no image of the split {split!r}; it has {sorted(splits)}")


def _caption_lines(file: Path) -> Iterator[tuple[str, list[str]]]:
    lines = [line for line in read_text(file).splitlines() if line.strip()]
    for number, line in enumerate(lines[1:], start=2):
        found = re.match(r"(.+?\.\w+),(.*)", line)
        if found is None:
            raise ValueError(
                f"{file}, line {number}: expected `picture.jpg,caption`: {line[:60]!r}"
            )
        yield found[1], [found[2].strip()]


def _entries(content: dict[str, Any], name: str, file: Path) -> list[Entry]:
    values = content.get(name)
    if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
        raise ValueError(f"{file}: expected an object with a list of objects {name!r}")
    hint = "Compare with the layouts in docs/encoders.md"
    return [Entry(value, f"{file}, {name}, {i}", hint) for i, value in enumerate(values, start=1)]


def _class_names_in(folder: Path) -> list[str]:
    """Returns the sorted names of the folders that are classes, not splits."""
    splits = {name for names in _SPLITS.values() for name in names}
    return sorted(
        path.name
        for path in folder.iterdir()
        if path.is_dir() and not is_hidden(path.name) and path.name not in splits
    )


def _samples(folder: Path) -> Iterator[tuple[str, Path, dict[str, Member], Any]]:
    """Yields place, shard, members by extension, and the open shard of each sample."""
    count = read_text(folder / _NUM_SHARDS).strip()
    if not count.isdecimal() or not int(count):
        raise ValueError(f"{folder / _NUM_SHARDS}: {count[:20]!r}; expected the number of shards")
    for number in range(int(count)):
        path = folder / f"{number}.tar"
        if not path.is_file():
            raise ValueError(
                f"{path}: no such file, but {_NUM_SHARDS} says that there are {count} shards; "
                "download it again"
            )
        with path.open("rb") as file:
            for sample in samples(file, path):
                if isinstance(sample, Rejected):
                    raise ValueError(f"{sample.id}: {sample.reason}; download {path} again")
                if not isinstance(sample, Documents):
                    yield f"{path}, sample {sample.key}", path, sample.members, file


def _one(members: dict[str, Member], extensions: Sequence[str], where: str) -> Member:
    found = next((members[name] for name in extensions if name in members), None)
    if found is None:
        raise ValueError(
            f"{where}: no member .{' or .'.join(extensions)}; it has "
            f"{', '.join('.' + name for name in members)}"
        )
    return found


def _text(file: Any, member: Member, where: str) -> str:
    try:
        return read_member(file, member).decode("utf-8")
    except (BadRecord, UnicodeDecodeError) as error:
        raise ValueError(f"{where}: {member.name} is not readable text ({error})") from error
