"""Pictures with labels or captions that encoders are evaluated on, and their preprocessing."""

import abc
import enum
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from jaxtyping import Int, UInt8

from mm1_jax.batch import Image
from mm1_jax.config import Configurable, config_class
from mm1_jax.data.images import BadImage, Fit, decode, inner_size, resized
from mm1_jax.data.readers.image_files import ImageFolder
from mm1_jax.data.readers.tar import Member, read_member
from mm1_jax.data.record_files import BadRecord
from mm1_jax.evals.benchmarks.annotations import ImageFile
from mm1_jax.field_types import Positive, PositiveInt

# Names of files that are compared between processes.
_MOST_NAMES = 1000


class Resize(enum.Enum):
    """Ways to make a picture square."""

    SHORTEST = "shortest"  # Resizes the shortest side, then crops the center, as CLIP does.
    STRETCH = "stretch"  # Resizes both sides, as SigLIP does.


class Preprocessing(Configurable):
    """Resizes by Pillow's bicubic filter and crops, by torchvision's rounding."""

    @config_class
    class Config(Configurable.Config):
        resize: Resize = Resize.SHORTEST
        # Side of the crop as a fraction of the resized shortest side; AIM's is 0.875.
        crop: Positive = 1.0
        # Larger pictures are rejected before their pixels take memory.
        max_pixels: PositiveInt = 64_000_000

    def __init__(self, cfg: Config):
        super().__init__(cfg)
        if cfg.crop > 1:
            raise ValueError(f"preprocessing.crop={cfg.crop}: expected a fraction of at most 1")

    def __call__(self, image: Image, size: int) -> UInt8[np.ndarray, "s s 3"]:
        """Returns `size` x `size` pixels; raises BadImage if the picture cannot be decoded."""
        cfg = self._config
        picture = PIL.Image.fromarray(decode(image, max_pixels=cfg.max_pixels))
        fit = Fit.STRETCH if cfg.resize is Resize.STRETCH else Fit.CROP
        inner = inner_size(picture.size, round(size / cfg.crop), fit)
        return np.asarray(resized(picture, inner, (size, size), max_pixels=cfg.max_pixels))


class _TarPicture:
    """A picture in a tar file, which is read when the picture is shown."""

    def __init__(self, path: Path, member: Member):
        self._path, self._member = path, member

    def __str__(self) -> str:
        return f"{self._path}, member {self._member.name}"

    def __call__(self) -> bytes:
        try:
            with self._path.open("rb") as file:
                return read_member(file, self._member)
        except (BadRecord, OSError) as error:
            raise BadImage(str(error)) from error


class FolderPictures(Sequence[Image]):
    """Pictures of a folder by name; millions of them take little memory."""

    def __init__(self, folder: Path, names: list[str]):
        self._folder, self._names = ImageFolder(folder, follow_links=True), names

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: Any) -> Any:
        data: Any = ImageFile(self._folder, self._names[index])
        return Image(data)


class TarPictures(Sequence[Image]):
    """Pictures in tar files by path and member."""

    def __init__(self, places: Sequence[tuple[Path, Member]]):
        self._places = places

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: Any) -> Any:
        data: Any = _TarPicture(*self._places[index])
        return Image(data)


@dataclass(frozen=True)
class LabeledPictures:
    """Pictures of one class each.

    Attributes:
        pictures: Their data may be functions, whose text (`str`) names file and member.
        labels: Index of the class of each picture.
        class_names: The name of each class as it stands in prompts.
        templates: Prompts with `{c}` for the name of the class.
        about: Describes where class names and templates come from.
    """

    pictures: Sequence[Image]
    labels: Int[np.ndarray, "n"]
    class_names: tuple[str, ...]
    templates: tuple[str, ...]
    about: str = ""

    def fingerprint(self) -> str:
        texts = [*self.class_names, *self.templates]
        return _digest(self.pictures, [self.labels.tolist(), texts])


@dataclass(frozen=True)
class CaptionedPictures:
    """Pictures with one or more captions each."""

    pictures: Sequence[Image]
    captions: Sequence[tuple[str, ...]]

    def fingerprint(self) -> str:
        return _digest(self.pictures, [*self.captions])


def _digest(pictures: Sequence[Image], facts: list[Any]) -> str:
    """Returns a digest of facts and of the names of some files, without the folders above them."""
    shown = range(0, len(pictures), max(1, len(pictures) // _MOST_NAMES))
    files = [pictures[i].data for i in shown]
    names = [
        "/".join(str(file).split("/")[-2:])
        for file in files
        if isinstance(file, ImageFile | _TarPicture)
    ]
    digest = hashlib.blake2b(repr((facts, names)).encode(), digest_size=8)
    return f"pictures={len(pictures)} digest={digest.hexdigest()}"


class PictureSource(Configurable, abc.ABC):
    """A data set of pictures with the splits "train" and "test"; the interface of all of them."""

    @config_class
    class Config(Configurable.Config):
        pass

    @property
    @abc.abstractmethod
    def has_captions(self) -> bool:
        """True for pictures with captions, False for those with classes."""

    @abc.abstractmethod
    def labeled(self, split: str) -> LabeledPictures:
        """Returns the pictures of a split with their classes.

        Raises:
            ValueError: There are none, or a file is not as documented.
        """

    @abc.abstractmethod
    def captioned(self) -> CaptionedPictures:
        """Returns the pictures of the test split with their captions.

        Raises:
            ValueError: There are none, or a file is not as documented.
        """
