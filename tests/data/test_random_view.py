import colorsys
import io

import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest

from mm1_jax.batch import Image
from mm1_jax.data.images import BadImage, Crop, ImageTransform, JpegDecoder
from mm1_jax.data.random_view import ColorJitter, RandomView, shift_hue


def view(**fields):
    return RandomView.default_config().set(**fields).instantiate()


def transform(size=32, decoder=JpegDecoder.PILLOW):
    fields = {"image_size": size, "jpeg_decoder": decoder}
    return ImageTransform.default_config().set(**fields).instantiate()


def scenery(height, width):
    y, x = np.indices((height, width)) / max(height, width)
    channels = [np.sin(5 * x + 2 * y), np.cos(4 * y - x), np.sin(7 * x * y) + (x + y > 0.8)]
    return np.clip(np.stack(channels, -1) * 90 + 120, 0, 255).astype(np.uint8)


def jpeg(height, width, orientation=1):
    exif, file = PIL.Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    PIL.Image.fromarray(scenery(height, width)).save(file, "JPEG", quality=95, exif=exif)
    return Image(file.getvalue())


@pytest.mark.parametrize(("width", "height"), [(200, 100), (37, 90), (64, 64)])
def test_crops_have_the_area_and_aspect_of_random_resized_crop(width, height):
    made, rng = view(min_area=0.3, max_area=0.8), np.random.default_rng(0)
    crops = [made.crop(width, height, rng) for _ in range(2000)]
    for crop in crops:
        assert crop.left >= 0 and crop.left + crop.width <= width
        assert crop.top >= 0 and crop.top + crop.height <= height
    sides = np.array([(crop.width, crop.height) for crop in crops])
    areas = sides.prod(axis=1) / (width * height)
    aspects = sides[:, 0] / sides[:, 1]
    assert 0.27 < areas.min() < 0.33 and areas.max() < 0.83
    assert aspects.min() > 0.71 and aspects.max() < 1.41
    if width == height:
        # Uniform in the area, except that crops that stick out are drawn again.
        assert np.mean(areas) == pytest.approx(0.54, abs=0.02)
        assert np.mean(np.log(aspects)) == pytest.approx(0, abs=0.01)
        left = np.array([crop.left / max(1, width - crop.width) for crop in crops])
        assert np.mean(left) == pytest.approx(0.5, abs=0.03)


def test_pictures_that_no_crop_fits_give_their_center():
    # torchvision: w, h = round(100 * 4 / 3), 100 at the center.
    made, rng = view(min_area=1.0), np.random.default_rng(0)
    assert made.crop(1000, 100, rng) == Crop(433, 0, 133, 100)
    assert made.crop(3, 40, rng) == Crop(0, 18, 3, 4)


@pytest.mark.parametrize("orientation", [1, 6])
def test_the_pixels_are_those_of_cropping_and_then_resizing(orientation):
    image = jpeg(90, 140, orientation)
    picture = PIL.ImageOps.exif_transpose(PIL.Image.open(io.BytesIO(image.data)))
    made = view()
    for seed in range(5):
        crop = made.crop(
            *picture.size, np.random.default_rng(np.random.SeedSequence((seed, 3)).spawn(1)[0])
        )
        box = (crop.left, crop.top, crop.left + crop.width, crop.top + crop.height)
        expected = picture.crop(box).resize((32, 32), PIL.Image.Resampling.BICUBIC)
        np.testing.assert_array_equal(made(image, transform(), (seed, 3)), np.asarray(expected))


@pytest.mark.parametrize("decoder", [JpegDecoder.PILLOW_DRAFT, JpegDecoder.SIMPLEJPEG])
def test_scaled_decoding_shows_the_same_part_and_keeps_enough_pixels(decoder):
    if decoder is JpegDecoder.SIMPLEJPEG:
        pytest.importorskip("simplejpeg")
    made = view(min_area=0.1)
    for orientation in (1, 6):
        image = jpeg(500, 700, orientation)
        for seed in range(6):
            expected = made(image, transform(), (seed,)).astype(int)
            found = made(image, transform(decoder=decoder), (seed,)).astype(int)
            assert np.abs(found - expected).mean() < 3
    scaled, decoded = transform(decoder=decoder), []
    decode = scaled._decode
    scaled._decode = lambda *args: decoded.append(decode(*args)) or decoded[-1]
    whole = (700, 500)
    scaled.cropped(jpeg(500, 700), lambda width, height: Crop(100, 50, 130, 100))
    # At least 32 of the crop's pixels on each side.
    assert decoded[0].width / whole[0] * 130 >= 32 and decoded[0].height / whole[1] * 100 >= 32
    assert decoded[0].width <= 350


def test_a_view_is_a_function_of_its_seed_and_flips_as_often_as_asked():
    gray = np.repeat(np.arange(64, dtype=np.uint8)[None, :, None], 64, axis=0).repeat(3, axis=2)
    made = view(flip=0.3, colors=ColorJitter.default_config())
    for seed in range(4):
        one, two = (made(Image(gray), transform(), (seed, 1)) for _ in range(2))
        np.testing.assert_array_equal(one, two)
    views = [view(flip=0.3)(Image(gray), transform(), (seed,)) for seed in range(600)]
    mirrored = [pixels[0, 0, 0] > pixels[0, -1, 0] for pixels in views]
    assert np.mean(mirrored) == pytest.approx(0.3, abs=0.06)
    assert len({pixels.tobytes() for pixels in views}) > 200
    with pytest.raises(BadImage, match="not an image"):
        made(Image(b"no picture"), transform(), (0,))


def gray_of(pixels):
    return pixels @ np.array([0.299, 0.587, 0.114])


def only(**fields):
    none = dict(probability=1.0, brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0)
    return ColorJitter.default_config().set(**(none | fields)).instantiate()


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_color_changes_blend_with_black_with_the_mean_and_with_gray(name):
    # The definitions of torchvision: other + factor * (pixels - other), clipped.
    pixels = scenery(20, 30).astype(float)
    other = {
        "brightness": np.zeros_like(pixels),
        "contrast": np.full_like(pixels, gray_of(pixels).mean()),
        "saturation": np.repeat(gray_of(pixels)[..., None], 3, axis=2),
    }[name]
    jitter, factors = only(**{name: 0.5}), []
    for seed in range(200):
        found = np.asarray(
            jitter(PIL.Image.fromarray(pixels.astype(np.uint8)), np.random.default_rng(seed)), float
        )
        inside = (found > 1) & (found < 254)
        change, whole = (found - other)[inside], (pixels - other)[inside]
        factor = change @ whole / (whole @ whole)
        expected = np.clip(other + factor * (pixels - other), 0, 255)
        assert np.abs(found - expected).max() < 3
        factors.append(factor)
    assert 0.49 < min(factors) < 0.55 and 1.45 < max(factors) < 1.51
    assert np.mean(factors) == pytest.approx(1, abs=0.06)


def test_the_hue_turns_and_nothing_else_changes():
    colors = np.array([[[200, 40, 40], [30, 180, 90], [70, 70, 70]]], np.uint8)
    found = np.asarray(shift_hue(PIL.Image.fromarray(colors), 1 / 3))
    for before, after in zip(colors[0], found[0], strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*before / 255)
        expected = np.array(colorsys.hsv_to_rgb((hue + 1 / 3) % 1, saturation, value)) * 255
        assert np.abs(after - expected).max() <= 4


def test_pictures_keep_their_colors_as_often_as_asked():
    picture = PIL.Image.fromarray(scenery(8, 8))
    jitter = ColorJitter.default_config().set(probability=0.7).instantiate()
    kept = [
        np.array_equal(jitter(picture, np.random.default_rng(seed)), picture) for seed in range(500)
    ]
    assert np.mean(kept) == pytest.approx(0.3, abs=0.06)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"min_area": 0.9, "max_area": 0.5}, "min_area=0.9 and max_area=0.5 must be fractions"),
        ({"max_area": 1.5}, "max_area=1.5 must be fractions"),
        ({"max_aspect": 0.5}, "max_aspect=0.5 must be at least 1"),
        ({"colors": ColorJitter.default_config().set(hue=0.7)}, "hue=0.7: half of the circle"),
    ],
)
def test_impossible_views_are_rejected(fields, message):
    with pytest.raises(ValueError, match=message):
        view(**fields)
