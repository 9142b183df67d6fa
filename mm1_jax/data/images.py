"""Encoded images -> square pixels: decode, resize, augment.

Training and evaluation share one resize filter, Pillow's antialiased bicubic. Files are not
trusted: any fault in one raises BadImage with the reason.
"""

import contextlib
import enum
import io
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import PIL.Image
import PIL.ImageOps
from jaxtyping import UInt8

from mm1_jax.batch import Image, View
from mm1_jax.config import Configurable, config_class
from mm1_jax.data.grids import padded_size
from mm1_jax.field_types import Decay, NonNegative, PositiveInt, Share

try:
    import simplejpeg
except ImportError:
    simplejpeg = None

# Formats that Pillow decodes itself; EPS, for one, would start another program.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
_ORIENTATION = 0x0112
# EXIF orientations that swap width and height.
_SIDEWAYS = (5, 6, 7, 8)


class Crop(NamedTuple):
    """A part of a picture, in pixels."""

    left: int
    top: int
    width: int
    height: int


Augment = Callable[[UInt8[np.ndarray, "h w 3"]], UInt8[np.ndarray, "h w 3"]]


class BadImage(ValueError):
    """An image that cannot be decoded; the message is the reason."""


class Fit(enum.Enum):
    """Ways to make a non-square image square."""

    STRETCH = "stretch"
    PAD = "pad"  # Keeps the aspect ratio and centers the image on black.
    CROP = "crop"  # Resizes the shortest side and cuts out the center, as CLIP's evaluation does.


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

    Reads only the header of a file. A rendered picture is rendered, unless its function has an
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
    picture = PIL.Image.fromarray(pixels)
    inner = inner_size(picture.size, size, fit)
    return np.asarray(_centered(picture.resize(inner, PIL.Image.Resampling.BICUBIC), (size, size)))


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
    """Decodes an image, resizes it to a square and, if asked, augments it.

    A tile is cut from the picture resized to its grid. Its pixels do not depend on which other
    views of the picture are shown.
    """

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

    def __call__(self, image: Image) -> UInt8[np.ndarray, "s s 3"]:
        """Returns the pixels of one view; raises BadImage if the image cannot be decoded."""
        return Viewer(self)(image)

    def views(
        self, images: Sequence[Image], augment: Augment | None = None
    ) -> list[UInt8[np.ndarray, "s s 3"]]:
        """Returns the pixels of views of one picture, which is decoded once.

        Args:
            augment: Applied to the whole picture before it is cut into tiles, so all views of a
                picture agree. It must draw the same numbers each time.
        """
        viewer = Viewer(self, augment)
        return [viewer(image) for image in images]

    def canvas(
        self, image: Image, decoded: dict[tuple[int, int] | None, PIL.Image.Image]
    ) -> PIL.Image.Image:
        """Returns the whole picture, resized to the grid of a view or to one image.

        Args:
            decoded: Cache of pictures decoded from the same data, by the size that they were
                decoded for; None is the full size.
        """
        view, side = image.view, self.image_size
        size = (side, side) if view is None else (view.columns * side, view.rows * side)
        picture = self._decode(image, decoded, lambda whole: self._inner_size(whole, view))
        inner = self._inner_size(picture.size, view)
        return resized(picture, inner, size, max_pixels=self._config.max_pixels)

    def cropped(self, image: Image, crop: Callable[[int, int], Crop]) -> PIL.Image.Image:
        """Returns a part of the picture, cut from the decoded pixels and resized to a square.

        A scaled decoder keeps at least as many pixels of the part as the square has.

        Args:
            crop: Returns the part of a picture of this width and height. It must return the same
                part each time.
        """
        side, wholes = self.image_size, []

        def needed(whole: tuple[int, int]) -> tuple[int, int]:
            wholes.append(whole)
            (width, height), part = whole, crop(*whole)
            return (
                min(width, math.ceil(width * side / part.width)),
                min(height, math.ceil(height * side / part.height)),
            )

        picture = self._decode(image, {}, needed)
        whole = wholes[0] if wholes else picture.size
        part = crop(*whole)
        x, y = (now / before for now, before in zip(picture.size, whole, strict=True))
        left, right = part.left * x, (part.left + part.width) * x
        top, bottom = part.top * y, (part.top + part.height) * y
        # Cut first: the filter must not see pixels beside the part.
        first, above = math.floor(left), math.floor(top)
        cut = picture.crop((first, above, math.ceil(right), math.ceil(bottom)))
        box = (left - first, top - above, right - first, bottom - above)
        return cut.resize((side, side), PIL.Image.Resampling.BICUBIC, box=box)

    def _inner_size(self, size: tuple[int, int], view: View | None) -> tuple[int, int]:
        """Returns the width and height of the picture inside its square or its grid."""
        if view is None:
            return inner_size(size, self.image_size, self._config.fit)
        canvas = (view.columns * self.image_size, view.rows * self.image_size)
        return padded_size(size, canvas) if view.pads else canvas

    def _decode(
        self,
        image: Image,
        decoded: dict[tuple[int, int] | None, PIL.Image.Image],
        needed: Callable[[tuple[int, int]], tuple[int, int]],
    ) -> PIL.Image.Image:
        """Returns the upright picture, at least as large as `needed` or as its file is.

        Args:
            needed: Returns the least width and height of the whole upright picture, from those of
                its file.
        """
        if None in decoded:
            return decoded[None]
        cfg, data = self._config, _data(image)
        if isinstance(data, np.ndarray):
            return decoded.setdefault(None, PIL.Image.fromarray(data))
        with _opened(data, cfg.max_pixels) as picture:
            # MPO files, which some cameras write, hold several images and begin like a JPEG.
            is_jpeg = picture.format in ("JPEG", "MPO") and picture.mode in ("RGB", "L")
            if not is_jpeg or cfg.jpeg_decoder is JpegDecoder.PILLOW:
                return decoded.setdefault(None, _to_rgb(picture))
            least = _least_size(picture, needed)
            if least not in decoded:
                if cfg.jpeg_decoder is JpegDecoder.PILLOW_DRAFT:
                    picture.draft(None, least)
                else:
                    picture = _scaled(data, picture, least)
                decoded[least] = _to_rgb(picture)
            return decoded[least]


class Viewer:
    """Shows images one by one, and decodes a picture once for consecutive views of it.

    It may be made without a transform, for a model that reads no images, but not called then.
    """

    def __init__(self, transform: ImageTransform | None, augment: Augment | None = None):
        self._transform = transform
        self._augment = augment
        self._forget(None)

    def _forget(self, data: object) -> None:
        self._data = data
        self._decoded: dict[tuple[int, int] | None, PIL.Image.Image] = {}
        self._canvases: dict[tuple[int, int, bool] | None, np.ndarray] = {}
        self._error: BadImage | None = None

    def __call__(self, image: Image) -> UInt8[np.ndarray, "s s 3"]:
        """Returns the pixels of a view; raises BadImage if the image cannot be decoded."""
        if image.data is not self._data:
            self._forget(image.data)
        if self._error is not None:
            raise self._error
        assert self._transform is not None, "asked of models that read images"
        view, size = image.view, self._transform.image_size
        grid = None if view is None else (view.columns, view.rows, view.pads)
        if grid not in self._canvases:
            try:
                canvas = np.asarray(self._transform.canvas(image, self._decoded))
            except BadImage as error:
                self._error = error
                raise
            self._canvases[grid] = canvas if self._augment is None else self._augment(canvas)
        canvas = self._canvases[grid]
        if view is None:
            return canvas
        top, left = view.row * size, view.column * size
        return canvas[top : top + size, left : left + size]


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


def _least_size(
    picture: PIL.Image.Image, needed: Callable[[tuple[int, int]], tuple[int, int]]
) -> tuple[int, int]:
    """Returns the least size to decode a file to, before its EXIF orientation is applied."""
    is_sideways = False
    # A damaged EXIF block does not tell the orientation.
    with contextlib.suppress(Exception):
        is_sideways = picture.getexif().get(_ORIENTATION, 1) in _SIDEWAYS
    if is_sideways:
        height, width = needed((picture.height, picture.width))
        return width, height
    return needed(picture.size)


def resized(
    picture: PIL.Image.Image, inner: tuple[int, int], size: tuple[int, int], *, max_pixels: int
) -> PIL.Image.Image:
    """Resizes a picture to the size `inner`, and cuts out or pads the center to `size`.

    Raises:
        BadImage: `inner` has more than `max_pixels`.
    """
    if math.prod(inner) > max_pixels:
        raise BadImage(f"its sides are too unequal: {inner[0]} x {inner[1]} pixels when resized")
    return _centered(picture.resize(inner, PIL.Image.Resampling.BICUBIC), size)


def inner_size(size: tuple[int, int], square: int, fit: Fit) -> tuple[int, int]:
    """Returns the width and height to which an image is resized for its square."""
    if fit is Fit.STRETCH:
        return square, square
    if fit is Fit.CROP:
        # Rounds as torchvision does.
        width, height = (int(square * side / min(size)) for side in size)
        return width, height
    scale = square / max(size)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _centered(picture: PIL.Image.Image, size: tuple[int, int]) -> PIL.Image.Image:
    """Cuts out the center of a picture, or centers a smaller one on black, of this size."""
    if picture.size == size:
        return picture
    if picture.width > size[0] or picture.height > size[1]:
        # Rounds as torchvision does.
        left, top = (round((a - b) / 2) for a, b in zip(picture.size, size, strict=True))
        return picture.crop((left, top, left + size[0], top + size[1]))
    canvas = PIL.Image.new("RGB", size)
    canvas.paste(picture, ((size[0] - picture.size[0]) // 2, (size[1] - picture.size[1]) // 2))
    return canvas


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
