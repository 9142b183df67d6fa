import contextlib
import functools
import io
import json
import struct
import zlib

import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest

from mm1_jax.batch import Image
from mm1_jax.data import images
from mm1_jax.data.images import (
    Augmentation,
    BadImage,
    Fit,
    ImageTransform,
    JpegDecoder,
    decode,
    resize,
)

MAX_PIXELS = 64_000_000
SCALED = (JpegDecoder.PILLOW_DRAFT, JpegDecoder.SIMPLEJPEG)


def encoded(picture: PIL.Image.Image, format: str = "PNG", **options) -> Image:
    file = io.BytesIO()
    picture.save(file, format, **options)
    return Image(file.getvalue())


def noise(height: int = 20, width: int = 30) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def pixels_of(image: Image) -> np.ndarray:
    return decode(image, max_pixels=MAX_PIXELS)


def scenery(height: int, width: int) -> np.ndarray:
    """A picture that is smooth except for an edge, as photographs are; JPEG would drop noise."""
    y, x = np.indices((height, width)) / max(height, width)
    channels = [np.sin(5 * x + 2 * y), np.cos(4 * y - x), np.sin(7 * x * y) + (x + y > 0.8)]
    return np.clip(np.stack(channels, -1) * 90 + 120, 0, 255).astype(np.uint8)


def jpeg(height: int, width: int, mode: str = "RGB", **options) -> Image:
    return encoded(PIL.Image.fromarray(scenery(height, width)).convert(mode), "JPEG", **options)


def oriented(orientation: int) -> PIL.Image.Exif:
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    return exif


def transform_by(decoder: JpegDecoder, image_size: int = 32, **fields) -> ImageTransform:
    if decoder is JpegDecoder.SIMPLEJPEG:
        pytest.importorskip("simplejpeg")
    fields |= {"image_size": image_size, "jpeg_decoder": decoder}
    return ImageTransform.default_config().set(**fields).instantiate()


def huge_png() -> bytes:
    """The header of a PNG of 10^10 pixels, in about 60 bytes."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0"))


def test_rgb_files_and_pixels_decode_unchanged():
    assert np.array_equal(pixels_of(Image(noise())), noise())
    assert np.array_equal(pixels_of(encoded(PIL.Image.fromarray(noise()))), noise())


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (b"<html>404</html>", "not an image"),
        (encoded(PIL.Image.fromarray(noise(200, 200)), "JPEG").data[:2000], "truncated"),
        (encoded(PIL.Image.fromarray(noise(200, 200)), "PNG").data[:9000], "truncated"),
        (huge_png(), "max_pixels|bomb"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
        (np.zeros((2, 2), np.uint8), "not uint8"),
        (np.zeros((2, 2, 3), np.float32), "not uint8"),
        (np.zeros((0, 2, 3), np.uint8), "not uint8"),
    ],
)
def test_a_bad_image_names_the_reason(data, reason):
    with pytest.raises(BadImage, match=reason):
        pixels_of(Image(data))


def test_a_damaged_file_is_decoded_or_raises_bad_image():
    rng = np.random.default_rng(0)
    files = [encoded(PIL.Image.fromarray(noise()), f).data for f in ("JPEG", "PNG", "GIF", "WEBP")]
    for trial in range(200):
        data = bytearray(files[trial % len(files)])
        for place in rng.integers(0, len(data), 3):
            data[place] = rng.integers(256)
        with contextlib.suppress(BadImage):
            assert pixels_of(Image(bytes(data))).dtype == np.uint8


def test_an_image_larger_than_the_limit_is_rejected():
    image = encoded(PIL.Image.fromarray(noise(10, 10)))
    assert decode(image, max_pixels=100).shape == (10, 10, 3)
    with pytest.raises(BadImage, match="10 x 10 pixels are more than max_pixels=99"):
        decode(image, max_pixels=99)


def test_sixteen_bit_gray_is_scaled_not_clipped():
    values = np.array([[0, 255, 256, 32768, 65535]], np.uint16)
    assert pixels_of(encoded(PIL.Image.fromarray(values)))[0, :, 0].tolist() == [0, 0, 1, 128, 255]


def test_transparent_pixels_become_white():
    rgba = np.array([[[10, 20, 30, 255], [0, 0, 0, 0], [0, 0, 0, 128]]], np.uint8)
    pixels = pixels_of(encoded(PIL.Image.fromarray(rgba)))[0]
    assert pixels[0].tolist() == [10, 20, 30]
    assert pixels[1].tolist() == [255, 255, 255]
    assert pixels[2].tolist() == [127, 127, 127]


def test_exif_orientation_is_applied():
    pixels = np.zeros((8, 16, 3), np.uint8)
    pixels[:, :8] = 255
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # Rotate clockwise by 90 degrees: the left side moves to the top.
    turned = pixels_of(encoded(PIL.Image.fromarray(pixels), "JPEG", exif=exif, quality=95))
    assert turned.shape == (16, 8, 3)
    assert turned[:7].mean() > 250 and turned[9:].mean() < 5


def test_cmyk_gray_palette_and_animations_become_rgb():
    red = (200, 40, 40)
    picture = PIL.Image.new("RGB", (16, 16), red)
    for image in (encoded(picture.convert("CMYK"), "JPEG"), encoded(picture.quantize())):
        assert np.abs(pixels_of(image)[8, 8].astype(int) - red).max() < 8
    assert np.ptp(pixels_of(encoded(picture.convert("L")))[8, 8]) == 0
    frames = [PIL.Image.new("RGB", (4, 4), color) for color in ("red", "blue")]
    animation = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert pixels_of(animation)[0, 0].tolist() == [255, 0, 0]


def test_unusual_real_files_are_handled_as_expected(test_data):
    folder = test_data / "formats" / "edge_images"
    bad = {}
    decoded = {}
    for name in json.loads((folder / "EXPECTED.json").read_text()):
        try:
            decoded[name] = pixels_of(Image((folder / name).read_bytes()))
        except BadImage as error:
            bad[name] = str(error)
    assert sorted(bad) == ["empty.jpg", "not_an_image.jpg", "truncated.jpg"]
    assert decoded["exif_rotate6.jpg"].shape == (448, 233, 3)
    assert np.ptp(decoded["gray.jpg"], axis=-1).max() == 0
    assert decoded["gray16.png"].max() > decoded["gray16.png"].min()
    assert len(np.unique(decoded["gray16.png"])) > 16
    for fit in Fit:
        transform = ImageTransform.default_config().set(image_size=32, fit=fit).instantiate()
        for pixels in decoded.values():
            assert transform(Image(pixels)).shape == (32, 32, 3)


def test_stretching_fills_the_square_and_padding_keeps_the_aspect():
    white = np.full((10, 40, 3), 255, np.uint8)
    assert resize(white, 32, Fit.STRETCH).min() == 255
    padded = resize(white, 32, Fit.PAD)
    rows = padded[:, 16, 0] > 0
    assert rows.sum() == 8 and rows[12:20].all()
    assert resize(np.full((1, 1000, 3), 255, np.uint8), 32, Fit.PAD).max() == 255


def test_resizing_is_antialiased():
    checker = np.indices((256, 256)).sum(0) % 2 * 255
    small = resize(np.repeat(checker[..., None], 3, -1).astype(np.uint8), 32)
    assert abs(small.astype(int) - 128).max() <= 2


def test_without_augmentation_the_picture_is_unchanged():
    pixels = noise(32, 32)
    augmentation = Augmentation.default_config().instantiate()
    assert np.array_equal(augmentation(pixels, np.random.default_rng(0)), pixels)


def test_a_shift_moves_the_picture_within_its_range():
    pixels = np.zeros((33, 33, 3), np.uint8)
    pixels[14:19, 14:19] = 255
    augmentation = Augmentation.default_config().set(shift=0.25).instantiate()
    centers = []
    for seed in range(200):
        moved = augmentation(pixels, np.random.default_rng(seed))[..., 0].astype(float)
        grid = np.indices(moved.shape)
        centers.append((grid * moved).sum((1, 2)) / moved.sum() - 16)
    centers = np.array(centers)
    assert 7 < np.abs(centers).max() <= 0.25 * 33 + 0.5
    assert np.abs(centers.mean(0)).max() < 1.5


def test_rotation_and_scaling_keep_the_center():
    pixels = np.zeros((33, 33, 3), np.uint8)
    pixels[10:23, 14:19] = 255
    augmentation = Augmentation.default_config().set(rotate=0.3, scale=0.2).instantiate()
    areas = []
    for seed in range(50):
        moved = augmentation(pixels, np.random.default_rng(seed))[..., 0].astype(float)
        center = (np.indices(moved.shape) * moved).sum((1, 2)) / moved.sum()
        assert np.abs(center - 16).max() < 0.5
        areas.append(moved.sum() / pixels[..., 0].sum())
    assert 0.6 < min(areas) < 0.8 and 1.2 < max(areas) < 1.5


def test_augmentation_depends_on_the_generator_alone():
    cfg = Augmentation.default_config().set(shift=0.1, rotate=0.2, scale=0.1, contrast=0.2)
    pixels = noise(32, 32)
    first, second, other = (
        cfg.instantiate()(pixels, np.random.default_rng(seed)) for seed in (1, 1, 2)
    )
    assert np.array_equal(first, second)
    assert not np.array_equal(first, other)


def test_a_transform_without_a_size_names_the_field_that_sets_it():
    with pytest.raises(ValueError, match="image_size=None.*vision encoder"):
        ImageTransform.default_config().instantiate()


def test_synthetic_pictures_are_rendered_only_when_decoded():
    pixels, drawn = noise(), []
    picture = Image(lambda: drawn.append(1) or pixels)
    assert not drawn
    np.testing.assert_array_equal(decode(picture, max_pixels=1), pixels)
    with pytest.raises(BadImage, match="pixels are float64"):
        decode(Image(lambda: np.zeros((4, 4, 3))), max_pixels=1)


@pytest.mark.parametrize("fit", list(Fit))
@pytest.mark.parametrize(
    "image",
    [
        jpeg(90, 120),
        jpeg(90, 120, "L"),
        jpeg(90, 120, "CMYK"),
        jpeg(90, 120, progressive=True),
        jpeg(90, 120, exif=oriented(6)),
        jpeg(90, 120, exif=b"Exif\0\0not TIFF"),
        jpeg(20, 30),
        encoded(PIL.Image.fromarray(noise(50, 40)), "PNG", exif=oriented(3)),
        encoded(PIL.Image.fromarray(noise(50, 40)).quantize(16), "GIF"),
        encoded(PIL.Image.fromarray(noise(50, 40)), "WEBP"),
    ],
)
def test_the_pixels_equal_those_of_plain_pillow_calls(image, fit):
    picture = PIL.Image.open(io.BytesIO(image.data))
    with contextlib.suppress(Exception):
        picture = PIL.ImageOps.exif_transpose(picture)
    picture = picture.convert("RGB")
    if fit is Fit.STRETCH:
        expected = picture.resize((32, 32), PIL.Image.Resampling.BICUBIC)
    elif fit is Fit.CROP:
        # torchvision's Resize(32, BICUBIC) and CenterCrop(32).
        long = int(32 * max(picture.size) / min(picture.size))
        inner = (32, long) if picture.width <= picture.height else (long, 32)
        left, top = (int(round((side - 32) / 2.0)) for side in inner)
        expected = picture.resize(inner, PIL.Image.Resampling.BICUBIC)
        expected = expected.crop((left, top, left + 32, top + 32))
    else:
        scale = 32 / max(picture.size)
        inner = [round(side * scale) for side in picture.size]
        expected = PIL.Image.new("RGB", (32, 32))
        corner = tuple((32 - side) // 2 for side in inner)
        expected.paste(picture.resize(inner, PIL.Image.Resampling.BICUBIC), corner)
    found = transform_by(JpegDecoder.PILLOW, fit=fit)(image)
    np.testing.assert_array_equal(found, np.asarray(expected))


@pytest.mark.parametrize("fit", list(Fit))
@pytest.mark.parametrize("decoder", SCALED)
def test_scaled_decoding_is_never_smaller_than_the_target(decoder, fit):
    transform = transform_by(decoder, fit=fit)
    for height, width in [(31, 31), (32, 500), (64, 64), (65, 63), (200, 300), (300, 200)]:
        for exif in (oriented(1), oriented(6)):
            inner_size = functools.partial(transform._inner_size, view=None)
            picture = transform._decode(jpeg(height, width, exif=exif), {}, inner_size)
            inner = images.inner_size(picture.size, 32, fit)
            whole = (width, height) if exif[0x0112] == 1 else (height, width)
            for side, least, most in zip(picture.size, inner, whole, strict=True):
                assert min(least, most) <= side <= most
    # The image is ten times the target, so decoding it at an eighth of its size is enough.
    assert transform._decode(jpeg(320, 320), {}, lambda size: (32, 32)).size == (40, 40)


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("decoder", SCALED)
def test_scaled_decoding_barely_changes_pixels(decoder, mode):
    for orientation in range(1, 9):
        image = jpeg(300, 400, mode, quality=95, exif=oriented(orientation))
        expected = transform_by(JpegDecoder.PILLOW)(image)
        difference = transform_by(decoder)(image).astype(int) - expected
        assert 0 < np.abs(difference).mean() < 2


@pytest.mark.parametrize("decoder", SCALED)
def test_decoders_agree_on_small_images_and_other_formats(decoder):
    same = [
        jpeg(30, 20),
        jpeg(300, 400, "CMYK"),
        encoded(PIL.Image.fromarray(scenery(300, 400)), "PNG"),
        encoded(PIL.Image.fromarray(scenery(300, 400)), "WEBP"),
        Image(scenery(300, 400)),
    ]
    for image in same:
        expected = transform_by(JpegDecoder.PILLOW)(image)
        np.testing.assert_array_equal(transform_by(decoder)(image), expected)


def test_a_damaged_jpeg_is_decoded_by_pillow():
    data = bytearray(jpeg(300, 400).data)
    start = data.rindex(b"\xff\xda") + 14
    data[start + 20 : start + 60] = bytes(40)
    image = Image(bytes(data))
    expected = transform_by(JpegDecoder.PILLOW)(image)
    np.testing.assert_array_equal(transform_by(JpegDecoder.SIMPLEJPEG)(image), expected)


@pytest.mark.parametrize("decoder", list(JpegDecoder))
def test_every_decoder_rejects_truncated_and_oversized_images(decoder, monkeypatch):
    transform = transform_by(decoder, max_pixels=10_000)
    with pytest.raises(BadImage, match="truncated"):
        transform(Image(jpeg(90, 100).data[:1000]))
    if images.simplejpeg is not None:
        monkeypatch.setattr(
            images.simplejpeg, "decode_jpeg", lambda *_, **__: pytest.fail("decoded")
        )
    with pytest.raises(BadImage, match="120 x 90 pixels are more than max_pixels=10000"):
        transform(jpeg(90, 120))


def test_a_missing_decoder_is_an_error_without_fallback(monkeypatch):
    monkeypatch.setattr(images, "simplejpeg", None)
    with pytest.raises(ValueError, match=r"simplejpeg.*pip install \"mm1_jax\[fast-images\]\""):
        transform_by(JpegDecoder.SIMPLEJPEG)
    transform_by(JpegDecoder.PILLOW_DRAFT)
