"""Encoded images -> square pixels: decode, resize, augment.

Training and evaluation share one resize filter, Pillow's antialiased bicubic. Files are not
trusted: any fault in one raises BadImage with the reason.
"""

import contextlib
import enum
import io
import math
from collections.abc import Iterator

import numpy as np
import PIL.Image
import PIL.ImageOps
from jaxtyping import UInt8

from mm1_jax.batch import Image
from mm1_jax.config import Configurable, config_class
from mm1_jax.field_types import Decay, NonNegative, PositiveInt, Share

try:
    import simplejpeg
except ImportError:
    simplejpeg = None

# Formats that Pillow decodes itself; EPS, for one, would start another program.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
_ORIENTATION = 0x0112
# Orientations of which the sides are swapped.
_SIDEWAYS = (5, 6, 7, 8)


class BadImage(ValueError):
    """An image that cannot be decoded; the message is the reason."""


class Fit(enum.Enum):
    """Ways to make a non-square image square."""

    STRETCH = "stretch"
    PAD = "pad"  # Keeps the aspect ratio and centers the image on black.


class JpegDecoder(enum.Enum):
    """The decoder of JPEG files. The pixels of decoders differ slightly, so a run uses only one.

    No decoder scales an image below the size to which it is resized. Pillow decodes other formats,
    CMYK, and files that simplejpeg rejects, at full size.

    Resizing takes longer than decoding, and scaled decoding leaves less to resize. The table gives
    images per second relative to PILLOW, and the mean difference in gray levels, for photographs of
    a given width in pixels that are resized to 378 x 378:

                      448       1000       1600       2400
        PILLOW_DRAFT  1.0, 0    1.1, 0.4   2.3, 0.7   4.0, 1.2
        SIMPLEJPEG    1.0, 0    1.5, 2.1   2.5, 1.6   3.9, 1.5
    """

    PILLOW = "pillow"  # All pixels.
    PILLOW_DRAFT = "pillow_draft"  # 1/2, 1/4 or 1/8 of the size, by Pillow.
    SIMPLEJPEG = "simplejpeg"  # Any multiple of 1/8 of the size, by the package simplejpeg.


def decode(image: Image, *, max_pixels: int) -> UInt8[np.ndarray, "h w 3"]:
    """Decodes to RGB: the first frame, EXIF orientation applied, transparency on white."""
    data = _data(image)
    if isinstance(data, np.ndarray):
        return data
    with _opened(data, max_pixels) as picture:
        return np.asarray(_to_rgb(picture))


def picture_size(image: Image) -> tuple[int, int] | None:
    """Returns the width and height of the upright picture; None if it cannot be read.

    Of a file, only the header is read. A rendered picture is rendered, unless its function has an
    attribute `size`.
    """
    if callable(image.data) and hasattr(image.data, "size"):
        return image.data.size
    try:
        data = _data(image)
        if isinstance(data, np.ndarray):
            return data.shape[1], data.shape[0]
        with PIL.Image.open(io.BytesIO(data), formats=FORMATS) as picture:
            width, height = picture.size
            # Pillow swaps the sides of a TIFF itself, and would decode a PNG that has no early
            # EXIF block to find a late one.
            is_swapped = False
            if picture.format != "TIFF" and "exif" in picture.info:
                is_swapped = picture.getexif().get(_ORIENTATION, 1) in _SIDEWAYS
    # Pillow's readers raise nearly anything on a damaged file.
    except Exception:
        return None
    return (height, width) if is_swapped else (width, height)


def resize(
    pixels: UInt8[np.ndarray, "h w 3"], size: int, fit: Fit = Fit.STRETCH
) -> UInt8[np.ndarray, "size size 3"]:
    """Resizes an image to `size` x `size` pixels."""
    return np.asarray(_square(PIL.Image.fromarray(pixels), size, fit))


class Augmentation(Configurable):
    """A random shift, rotation, scale and contrast, drawn uniformly from symmetric ranges."""

    @config_class
    class Config(Configurable.Config):
        shift: Share = 0.0  # Largest shift in each direction, as a fraction of the side.
        rotate: NonNegative = 0.0  # Largest rotation, in radians.
        scale: Decay = 0.0  # Largest change of size, as a fraction.
        contrast: Share = 0.0  # Largest change of contrast around the mean, as a fraction.

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
        # Pillow wants the map from output to input; the center maps to the center, then shifts.
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
    """Decodes an image, resizes it to a square and, if asked, augments it."""

    @config_class
    class Config(Configurable.Config):
        image_size: PositiveInt | None = None  # Set by the experiment, from the vision encoder.
        fit: Fit = Fit.STRETCH
        # Larger images are rejected before their pixels take memory.
        max_pixels: PositiveInt = 64_000_000
        jpeg_decoder: JpegDecoder = JpegDecoder.PILLOW

    def __init__(self, cfg: Config):
        super().__init__(cfg)
        if cfg.image_size is None or cfg.image_size < 1:
            raise ValueError(
                f"image_transform.image_size={cfg.image_size}; expected a number of pixels. "
                "The experiment sets it from the vision encoder."
            )
        # Falling back to another decoder would make this host's batches differ from the others'.
        if cfg.jpeg_decoder is JpegDecoder.SIMPLEJPEG and simplejpeg is None:
            raise ValueError(
                "image_transform.jpeg_decoder=SIMPLEJPEG needs the package simplejpeg, which is "
                'not installed: `pip install "mm1_jax[fast-images]"`. PILLOW needs no package, but '
                "its pixels differ slightly."
            )
        self.image_size: int = cfg.image_size

    def __call__(
        self,
        image: Image,
        augmentation: Augmentation | None = None,
        rng: np.random.Generator | None = None,
    ) -> UInt8[np.ndarray, "s s 3"]:
        """Returns square pixels; raises BadImage if the image cannot be decoded."""
        pixels = np.asarray(_square(self._decode(image), self.image_size, self._config.fit))
        if augmentation is None:
            return pixels
        assert rng is not None, "an augmentation needs a generator"
        return augmentation(pixels, rng)

    def _decode(self, image: Image) -> PIL.Image.Image:
        cfg, data = self._config, _data(image)
        if isinstance(data, np.ndarray):
            return PIL.Image.fromarray(data)
        with _opened(data, cfg.max_pixels) as picture:
            # MPO files, which some cameras write, hold several images and begin like a JPEG.
            is_jpeg = picture.format in ("JPEG", "MPO") and picture.mode in ("RGB", "L")
            if is_jpeg and cfg.jpeg_decoder is not JpegDecoder.PILLOW:
                # EXIF orientation is applied later, so both sizes are those before it.
                least = _inner_size(picture.size, self.image_size, cfg.fit)
                if cfg.jpeg_decoder is JpegDecoder.PILLOW_DRAFT:
                    picture.draft(None, least)
                else:
                    picture = _scaled(data, picture, least)
            return _to_rgb(picture)


def _data(image: Image) -> bytes | UInt8[np.ndarray, "h w 3"]:
    data = image.data() if callable(image.data) else image.data
    if not isinstance(data, np.ndarray):
        return data
    if data.dtype != np.uint8 or data.ndim != 3 or data.shape[-1] != 3 or not data.size:
        raise BadImage(f"pixels are {data.dtype}{list(data.shape)}, not uint8 [h, w, 3]")
    return data


@contextlib.contextmanager
def _opened(data: bytes, max_pixels: int) -> Iterator[PIL.Image.Image]:
    """Opens an image file, reading only its header; errors within the block become BadImage."""
    if not data:
        raise BadImage("empty file")
    try:
        with PIL.Image.open(io.BytesIO(data), formats=FORMATS) as picture:
            width, height = picture.size
            # The header has the size: reject the image before its pixels take memory.
            if width * height > max_pixels:
                raise BadImage(f"{width} x {height} pixels are more than max_pixels={max_pixels}")
            yield picture
    except BadImage:
        raise
    except PIL.UnidentifiedImageError as error:
        raise BadImage(f"not an image: starts with {data[:16]!r}") from error
    # Pillow's decoders raise nearly anything on a damaged file.
    except Exception as error:
        raise BadImage(f"{type(error).__name__}: {error}") from error


def _scaled(data: bytes, header: PIL.Image.Image, least: tuple[int, int]) -> PIL.Image.Image:
    """Decodes a JPEG to at least `least` with simplejpeg; returns `header` if that rejects it."""
    assert simplejpeg is not None, "checked by the constructor"
    width, height = least
    try:
        # The pixel limit was checked against Pillow's reading of the header.
        if simplejpeg.decode_jpeg_header(data)[:2] != (header.height, header.width):
            return header
        pixels = simplejpeg.decode_jpeg(data, min_width=width, min_height=height)
    except ValueError:
        return header
    picture = PIL.Image.fromarray(pixels)
    # Includes the EXIF orientation.
    picture.info = header.info
    return picture


def _inner_size(size: tuple[int, int], square: int, fit: Fit) -> tuple[int, int]:
    """Returns the width and height of an image inside its square."""
    if fit is Fit.STRETCH:
        return square, square
    scale = square / max(size)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _square(picture: PIL.Image.Image, size: int, fit: Fit) -> PIL.Image.Image:
    inner = _inner_size(picture.size, size, fit)
    picture = picture.resize(inner, PIL.Image.Resampling.BICUBIC)
    if inner == (size, size):
        return picture
    square = PIL.Image.new("RGB", (size, size))
    square.paste(picture, ((size - inner[0]) // 2, (size - inner[1]) // 2))
    return square


def _to_rgb(picture: PIL.Image.Image) -> PIL.Image.Image:
    # Copying an image takes as long as decoding it, so nothing is copied needlessly.
    picture.load()
    # A damaged EXIF block does not tell the orientation; the pixels may be intact.
    with contextlib.suppress(Exception):
        if picture.getexif().get(_ORIENTATION, 1) != 1:
            picture = PIL.ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I"):
        # 16 bits per pixel, whatever the container: keep the high byte. `convert` would clip.
        values = np.clip(np.asarray(picture).astype(np.int64), 0, 65535)
        picture = PIL.Image.fromarray((values >> 8).astype(np.uint8))
    if picture.mode == "F":
        raise BadImage("floating-point pixels have no known range")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        white = PIL.Image.new("RGBA", picture.size, "white")
        picture = PIL.Image.alpha_composite(white, picture)
    return picture if picture.mode == "RGB" else picture.convert("RGB")
