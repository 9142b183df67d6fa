"""Encoded pictures -> square pixels: decode, augment, resize.

One resize filter, Pillow's antialiased bicubic, serves training and evaluation. Decoding trusts
nothing: whatever is wrong with a file ends in a `BadImage` that says what.
"""

import contextlib
import enum
import io
import math

import numpy as np
import PIL.Image
import PIL.ImageOps
from jaxtyping import UInt8

from mm1_jax.batch import Image
from mm1_jax.config import Configurable, config_class

# Formats that Pillow decodes itself; EPS, for one, would start another program.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")


class BadImage(ValueError):
    """A picture that cannot be decoded; the message is the reason."""


class Fit(enum.Enum):
    """How a picture that is not square becomes square."""

    STRETCH = "stretch"
    PAD = "pad"  # Keeps the aspect ratio; the picture is centred on black.


def decode(image: Image, *, max_pixels: int) -> UInt8[np.ndarray, "h w 3"]:
    """The picture as RGB: first frame, EXIF orientation applied, transparency put on white."""
    data = image.data() if callable(image.data) else image.data
    if isinstance(data, np.ndarray):
        pixels = data
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[-1] != 3 or not pixels.size:
            raise BadImage(f"pixels are {pixels.dtype}{list(pixels.shape)}, not uint8 [h, w, 3]")
        return pixels
    if not data:
        raise BadImage("empty file")
    try:
        with PIL.Image.open(io.BytesIO(data), formats=_FORMATS) as picture:
            width, height = picture.size
            # The size stands in the header: refuse before the pixels take memory.
            if width * height > max_pixels:
                raise BadImage(f"{width} x {height} pixels are more than max_pixels={max_pixels}")
            return np.asarray(_to_rgb(picture))
    except BadImage:
        raise
    except PIL.UnidentifiedImageError as error:
        raise BadImage(f"not an image: starts with {data[:16]!r}") from error
    # Pillow's decoders raise nearly anything on a damaged file.
    except Exception as error:
        raise BadImage(f"{type(error).__name__}: {error}") from error


def resize(
    pixels: UInt8[np.ndarray, "h w 3"], size: int, fit: Fit = Fit.STRETCH
) -> UInt8[np.ndarray, "size size 3"]:
    """Scales a picture to a square of `size` pixels."""
    height, width, _ = pixels.shape
    scale = size / max(height, width)
    inner = {
        Fit.STRETCH: (size, size),
        Fit.PAD: (max(1, round(width * scale)), max(1, round(height * scale))),
    }[fit]
    picture = PIL.Image.fromarray(pixels).resize(inner, PIL.Image.Resampling.BICUBIC)
    if inner == (size, size):
        return np.asarray(picture)
    square = PIL.Image.new("RGB", (size, size))
    square.paste(picture, ((size - inner[0]) // 2, (size - inner[1]) // 2))
    return np.asarray(square)


class Augmentation(Configurable):
    """A random shift, turn, scale and contrast, drawn uniformly from symmetric ranges."""

    @config_class
    class Config(Configurable.Config):
        shift: float = 0.0  # Largest shift in each direction, as a fraction of the side.
        rotate: float = 0.0  # Largest turn, in radians.
        scale: float = 0.0  # Largest change of size, as a fraction.
        contrast: float = 0.0  # Largest change of contrast around the mean, as a fraction.

    def __call__(
        self, pixels: UInt8[np.ndarray, "h w 3"], rng: np.random.Generator
    ) -> UInt8[np.ndarray, "h w 3"]:
        cfg = self._config
        draw = rng.uniform(-1, 1, 5)
        height, width, _ = pixels.shape
        angle, factor = draw[0] * cfg.rotate, 1 + draw[1] * cfg.scale
        shift_x, shift_y = draw[2] * cfg.shift * width, draw[3] * cfg.shift * height
        cos, sin = math.cos(angle) / factor, math.sin(angle) / factor
        center_x, center_y = width / 2, height / 2
        # Pillow wants the map from output to input; the centre goes to the centre, then shifts.
        matrix = (
            cos, sin, center_x - cos * (center_x + shift_x) - sin * (center_y + shift_y),
            -sin, cos, center_y + sin * (center_x + shift_x) - cos * (center_y + shift_y),
        )  # fmt: skip
        picture = PIL.Image.fromarray(pixels).transform(
            (width, height), PIL.Image.Transform.AFFINE, matrix, PIL.Image.Resampling.BICUBIC
        )
        values = np.asarray(picture, np.float32)
        mean = values.mean()
        values = mean + (values - mean) * np.float32(1 + draw[4] * cfg.contrast)
        return np.clip(np.rint(values), 0, 255).astype(np.uint8)


class ImageTransform(Configurable):
    """Decodes a picture, resizes it to a square and, if asked, augments it."""

    @config_class
    class Config(Configurable.Config):
        image_size: int | None = None  # Set by the experiment, from the vision encoder.
        fit: Fit = Fit.STRETCH
        # Larger pictures are refused before they take memory.
        max_pixels: int = 64_000_000

    def __init__(self, cfg: Config):
        super().__init__(cfg)
        if cfg.image_size is None or cfg.image_size < 1:
            raise ValueError(
                f"image_transform.image_size={cfg.image_size}; expected a number of pixels. "
                "The experiment sets it from the vision encoder."
            )
        self.image_size: int = cfg.image_size

    def __call__(
        self,
        image: Image,
        augmentation: Augmentation | None = None,
        rng: np.random.Generator | None = None,
    ) -> UInt8[np.ndarray, "s s 3"]:
        """Raises BadImage where the picture cannot be decoded."""
        pixels = decode(image, max_pixels=self._config.max_pixels)
        pixels = resize(pixels, self.image_size, self._config.fit)
        if augmentation is None:
            return pixels
        assert rng is not None, "an augmentation needs a generator"
        return augmentation(pixels, rng)


def _to_rgb(picture: PIL.Image.Image) -> PIL.Image.Image:
    # A damaged EXIF block says nothing about the orientation; the pixels may be sound.
    picture.load()
    with contextlib.suppress(Exception):
        picture = PIL.ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I"):
        # 16 bits a pixel, whatever the container: keep the high byte. `convert` would clip.
        values = np.clip(np.asarray(picture).astype(np.int64), 0, 65535)
        picture = PIL.Image.fromarray((values >> 8).astype(np.uint8))
    if picture.mode == "F":
        raise BadImage("floating-point pixels have no known range")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        white = PIL.Image.new("RGBA", picture.size, "white")
        picture = PIL.Image.alpha_composite(white, picture)
    return picture.convert("RGB")
