"""Random views of pictures, on which vision encoders are trained: crops, mirroring, colors.

The rules are those of torchvision's RandomResizedCrop, RandomHorizontalFlip and ColorJitter on
Pillow images, with other random numbers.
"""

import math

import numpy as np
import PIL.Image
import PIL.ImageEnhance
from jaxtyping import UInt8

from mm1_jax.batch import Image
from mm1_jax.config import Configurable, config_class
from mm1_jax.data.images import Crop, ImageTransform
from mm1_jax.field_types import NonNegative, Positive, Share

_TRIES = 10


class ColorJitter(Configurable):
    """Changes brightness, contrast, saturation and hue, in random order."""

    @config_class
    class Config(Configurable.Config):
        probability: Share = 0.8  # That a picture is changed at all.
        # Largest changes: of the first three as a fraction, of the hue as a fraction of its circle.
        brightness: NonNegative = 0.4
        contrast: NonNegative = 0.4
        saturation: NonNegative = 0.2
        hue: Share = 0.1

    def __init__(self, cfg: Config):
        super().__init__(cfg)
        if cfg.hue > 0.5:
            raise ValueError(
                f"colors.hue={cfg.hue}: half of the circle, 0.5, is the largest change"
            )

    def __call__(self, picture: PIL.Image.Image, rng: np.random.Generator) -> PIL.Image.Image:
        cfg = self._config
        applies, order = rng.uniform() < cfg.probability, rng.permutation(4)
        factors = [
            rng.uniform(max(0.0, 1 - most), 1 + most)
            for most in (cfg.brightness, cfg.contrast, cfg.saturation)
        ]
        shift = rng.uniform(-cfg.hue, cfg.hue)
        if not applies:
            return picture
        enhancers = (
            PIL.ImageEnhance.Brightness,
            PIL.ImageEnhance.Contrast,
            PIL.ImageEnhance.Color,
        )
        for change in order.tolist():
            if change < len(enhancers):
                picture = enhancers[change](picture).enhance(factors[change])
            elif cfg.hue:
                # Even a shift of 0 rounds colors.
                picture = shift_hue(picture, shift)
        return picture


class RandomView(Configurable):
    """A random crop, resized to a square, perhaps mirrored and with other colors."""

    @config_class
    class Config(Configurable.Config):
        # Area of the crop as a fraction of the picture.
        min_area: Positive = 0.4
        max_area: Positive = 1.0
        # Width per height of the crop is at most this, and at least its inverse.
        max_aspect: Positive = 4 / 3
        flip: Share = 0.0  # Probability that the view is mirrored.
        colors: ColorJitter.Config | None = None

    def __init__(self, cfg: Config):
        super().__init__(cfg)
        if not cfg.min_area <= cfg.max_area <= 1:
            raise ValueError(
                f"augmentation: min_area={cfg.min_area} and max_area={cfg.max_area} must be "
                "fractions in this order"
            )
        if cfg.max_aspect < 1:
            raise ValueError(f"augmentation.max_aspect={cfg.max_aspect} must be at least 1")
        self._colors = None if cfg.colors is None else cfg.colors.instantiate()

    def __call__(
        self, image: Image, transform: ImageTransform, seed: tuple[int, ...]
    ) -> UInt8[np.ndarray, "s s 3"]:
        """Returns a view of a picture; raises BadImage if it cannot be decoded.

        Args:
            transform: Decodes and resizes.
            seed: Determines the view.
        """
        crop_seed, other_seed = np.random.SeedSequence(seed).spawn(2)
        picture = transform.cropped(
            image, lambda width, height: self.crop(width, height, np.random.default_rng(crop_seed))
        )
        rng = np.random.default_rng(other_seed)
        if rng.uniform() < self._config.flip:
            picture = picture.transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT)
        if self._colors is not None:
            picture = self._colors(picture, rng)
        return np.asarray(picture)

    def crop(self, width: int, height: int, rng: np.random.Generator) -> Crop:
        """Draws the crop of a picture."""
        cfg = self._config
        log_aspect = math.log(cfg.max_aspect)
        for _ in range(_TRIES):
            area = width * height * rng.uniform(cfg.min_area, cfg.max_area)
            aspect = math.exp(rng.uniform(-log_aspect, log_aspect))
            w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < w <= width and 0 < h <= height:
                left, top = rng.integers(width - w + 1), rng.integers(height - h + 1)
                return Crop(int(left), int(top), w, h)
        # The largest central crop with an allowed aspect.
        w = min(width, round(height * cfg.max_aspect))
        h = min(height, round(width * cfg.max_aspect))
        return Crop((width - w) // 2, (height - h) // 2, w, h)


def shift_hue(picture: PIL.Image.Image, shift: float) -> PIL.Image.Image:
    """Rotates the hue by a fraction of its circle."""
    hue, saturation, value = picture.convert("HSV").split()
    # 8-bit hues wrap around.
    turned = (np.asarray(hue).astype(np.int32) + int(shift * 255)) % 256
    hue = PIL.Image.fromarray(turned.astype(np.uint8))
    return PIL.Image.merge("HSV", (hue, saturation, value)).convert("RGB")
