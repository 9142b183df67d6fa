"""Converts images and texts to inputs of an MM1, as mm1_jax does for its batches."""

import re
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageOps
from transformers import BatchFeature, ProcessorMixin
from transformers.image_processing_utils import BaseImageProcessor


class MM1ImageProcessor(BaseImageProcessor):
    """Resizes images to squares (Pillow's antialiased bicubic), then normalizes their colors."""

    model_input_names = ["pixel_values"]

    def __init__(
        self,
        image_size: int = 224,
        fit: str = "stretch",
        pixel_mean: tuple[float, ...] = (0.5, 0.5, 0.5),
        pixel_std: tuple[float, ...] = (0.5, 0.5, 0.5),
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.image_size, self.fit = image_size, fit
        self.pixel_mean, self.pixel_std = list(pixel_mean), list(pixel_std)

    def __call__(self, images: Any, **kwargs: Any) -> BatchFeature:
        return self.preprocess(images, **kwargs)

    def preprocess(
        self, images: Any, return_tensors: str | None = None, **kwargs: Any
    ) -> BatchFeature:
        """Converts one image or nested lists of them: Pillow images or uint8 arrays [h, w, 3]."""
        mean, std = np.float32(self.pixel_mean), np.float32(self.pixel_std)
        pixels = [
            ((self.square(image).astype(np.float32) / 255 - mean) / std).transpose(2, 0, 1)
            for image in flat(images)
        ]
        values = np.stack(pixels) if pixels else []
        return BatchFeature({"pixel_values": values}, tensor_type=return_tensors)

    def square(self, image: Any) -> np.ndarray:
        """Returns the image as uint8 [image_size, image_size, 3]."""
        size = self.image_size
        picture = to_rgb(image)
        inner = (size, size)
        if self.fit == "pad":
            scale = size / max(picture.size)
            inner = tuple(max(1, round(side * scale)) for side in picture.size)
        picture = picture.resize(inner, PIL.Image.Resampling.BICUBIC)
        if inner != (size, size):
            canvas = PIL.Image.new("RGB", (size, size))
            canvas.paste(picture, ((size - inner[0]) // 2, (size - inner[1]) // 2))
            picture = canvas
        return np.asarray(picture)


class MM1Processor(ProcessorMixin):
    """Processes texts in which "<image>" marks each image, and the images in reading order."""

    attributes = ["image_processor", "tokenizer"]
    image_processor_class = "AutoImageProcessor"
    tokenizer_class = "AutoTokenizer"

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        num_image_tokens: int = 1,
        image_token: str = "<image>",
        **kwargs: Any,
    ):
        self.num_image_tokens, self.image_token = num_image_tokens, image_token
        super().__init__(image_processor, tokenizer, **kwargs)

    def __call__(
        self,
        images: Any = None,
        text: str | list[str] | None = None,
        return_tensors: str | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Returns token ids, and pixels if there are images.

        Images precede a single text without marks. Spaces beside an image are dropped, since
        training tokenizes each text apart from the images around it.
        """
        texts = [text or ""] if text is None or isinstance(text, str) else list(text)
        pictures = [] if images is None else flat(images)
        marks = sum(each.count(self.image_token) for each in texts)
        if pictures and not marks and len(texts) == 1:
            texts = [self.image_token * len(pictures) + texts[0]]
            marks = len(pictures)
        if marks != len(pictures):
            raise ValueError(f"{marks} {self.image_token} marks, and {len(pictures)} pictures")
        mark = re.escape(self.image_token)
        texts = [
            re.sub(rf"\s*{mark}\s*", self.image_token * self.num_image_tokens, each.strip())
            for each in texts
        ]
        if len(texts) > 1:
            kwargs.setdefault("padding", True)
        features = dict(self.tokenizer(texts, return_tensors=return_tensors, **kwargs))
        if pictures:
            features |= self.image_processor(pictures, return_tensors=return_tensors)
        return BatchFeature(features)


def flat(images: Any) -> list[Any]:
    if isinstance(images, (list, tuple)):
        return [picture for each in images for picture in flat(each)]
    return [images]


def to_rgb(image: Any) -> PIL.Image.Image:
    """Returns the image upright, with transparency blended onto white."""
    if not isinstance(image, PIL.Image.Image):
        return PIL.Image.fromarray(np.asarray(image))
    image = PIL.ImageOps.exif_transpose(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = PIL.Image.new("RGBA", image.size, "white")
        image = PIL.Image.alpha_composite(white, image)
    return image.convert("RGB")
