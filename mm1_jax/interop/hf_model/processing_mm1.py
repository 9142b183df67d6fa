"""Converts images and texts to inputs of an MM1, as mm1_jax does for its batches."""

import itertools
import re
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageOps
from transformers import BatchFeature, ProcessorMixin
from transformers.image_processing_utils import BaseImageProcessor

# transformers copies modules that are imported in this form.
from .tiling_mm1 import RULES, Grid, padded_size


class MM1ImageProcessor(BaseImageProcessor):
    """Resizes images to squares (Pillow's antialiased bicubic), then normalizes their colors.

    With a `tiling`, a picture has several views: tiles of a grid, and an overview.
    """

    model_input_names = ["pixel_values"]

    def __init__(
        self,
        image_size: int = 224,
        fit: str = "stretch",
        pixel_mean: tuple[float, ...] = (0.5, 0.5, 0.5),
        pixel_std: tuple[float, ...] = (0.5, 0.5, 0.5),
        tiling: dict[str, Any] | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.tiling = tiling
        self.image_size, self.fit = image_size, fit
        self.pixel_mean, self.pixel_std = list(pixel_mean), list(pixel_std)

    def __call__(self, images: Any, **kwargs: Any) -> BatchFeature:
        return self.preprocess(images, **kwargs)

    def preprocess(
        self,
        images: Any,
        return_tensors: str | None = None,
        is_tiled: list[bool] | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Converts one image or nested lists of them: Pillow images or uint8 arrays [h, w, 3].

        Args:
            is_tiled: Which pictures show tiles; None means all, if there are few enough.
        """
        mean, std = np.float32(self.pixel_mean), np.float32(self.pixel_std)
        pictures = [to_rgb(image) for image in flat(images)]
        if is_tiled is None:
            is_tiled = self.tiled(len(pictures))
        pixels = [
            ((view.astype(np.float32) / 255 - mean) / std).transpose(2, 0, 1)
            for picture, tiled in zip(pictures, is_tiled, strict=True)
            for view in self.views(picture, tiled)
        ]
        values = np.stack(pixels) if pixels else []
        return BatchFeature({"pixel_values": values}, tensor_type=return_tensors)

    def tiled(self, num_pictures: int) -> list[bool]:
        """Returns whether each picture of a document with so many shows tiles."""
        limit = None if self.tiling is None else self.tiling["max_tiled_images"]
        is_tiled = self.tiling is not None and (limit is None or num_pictures <= limit)
        return [is_tiled] * num_pictures

    def grid(self, size: tuple[int, int]) -> Grid:
        """Returns the grid of a picture of this width and height."""
        rule = RULES[self.tiling["rule"]]
        return rule(*size, self.image_size, **self.tiling["options"])

    def places(self, size: tuple[int, int], is_tiled: bool) -> list[tuple[int, int] | None]:
        """Returns the column and row of each view in reading order; None is the whole picture."""
        if not is_tiled:
            return [None]
        columns, rows = self.grid(size)
        tiles = [(column, row) for row in range(rows) for column in range(columns)]
        has_overview = len(tiles) > 1 or self.tiling["overview_of_one_tile"]
        if self.tiling["overview"] == "none" or not has_overview:
            return tiles
        return [*tiles, None] if self.tiling["overview"] == "last" else [None, *tiles]

    def marked(self, size: tuple[int, int], is_tiled: bool, number: int) -> list[str]:
        """Returns the text before each view of the `number`-th picture of a document."""
        places = self.places(size, is_tiled)
        marks = self.tiling["marks"] if is_tiled else None
        if marks is None or len(places) == 1:
            return [""] * len(places)
        if marks["kind"] == "index":
            return [
                marks["overview"].format(picture=number, row=0, column=0)
                if place is None
                else marks["tile"].format(picture=number, row=place[1] + 1, column=place[0] + 1)
                for place in places
            ]
        texts = [""]
        for before, after in itertools.pairwise(places):
            if before is None or after is None:
                texts.append(marks["overview"])
            else:
                texts.append(marks["column" if before[1] == after[1] else "row"])
        return texts

    def views(self, picture: PIL.Image.Image, is_tiled: bool) -> list[np.ndarray]:
        """Returns each view of an RGB picture as uint8 [image_size, image_size, 3]."""
        size = self.image_size
        places, canvas = self.places(picture.size, is_tiled), None
        if is_tiled:
            columns, rows = self.grid(picture.size)
            full = inner = (columns * size, rows * size)
            if self.tiling["pads"]:
                inner = padded_size(picture.size, full)
            canvas = on_black(picture.resize(inner, PIL.Image.Resampling.BICUBIC), full)
        return [
            self.square(picture)
            if place is None
            else canvas[place[1] * size :, place[0] * size :][:size, :size]
            for place in places
        ]

    def square(self, picture: PIL.Image.Image) -> np.ndarray:
        """Returns the whole picture as uint8 [image_size, image_size, 3]."""
        size = self.image_size
        inner = (size, size)
        if self.fit == "pad":
            scale = size / max(picture.size)
            inner = tuple(max(1, round(side * scale)) for side in picture.size)
        if self.fit == "crop":
            inner = tuple(int(size * side / min(picture.size)) for side in picture.size)
        return on_black(picture.resize(inner, PIL.Image.Resampling.BICUBIC), (size, size))


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
        chat_template: str | None = None,
        **kwargs: Any,
    ):
        self.num_image_tokens, self.image_token = num_image_tokens, image_token
        super().__init__(image_processor, tokenizer, chat_template=chat_template, **kwargs)

    def __call__(
        self,
        images: Any = None,
        text: str | list[str] | None = None,
        return_tensors: str | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Returns token ids, and pixels if there are images.

        Images precede a single text without marks. Spaces beside an image are dropped, since
        training tokenizes each text apart from the images around it. A conversation, which the chat
        template begins with bos, keeps them.
        """
        # `apply_chat_template` passes None for media that there are none of.
        kwargs = {name: value for name, value in kwargs.items() if value is not None}
        texts = [text or ""] if text is None or isinstance(text, str) else list(text)
        pictures = [] if images is None else [to_rgb(image) for image in flat(images)]
        marks = sum(each.count(self.image_token) for each in texts)
        if pictures and not marks and len(texts) == 1:
            texts = [self.image_token * len(pictures) + texts[0]]
            marks = len(pictures)
        if marks != len(pictures):
            raise ValueError(f"{marks} {self.image_token} marks, and {len(pictures)} pictures")
        sizes = iter([picture.size for picture in pictures])
        is_tiled: list[bool] = []
        documents = []
        for each in texts:
            tiled = self.image_processor.tiled(each.count(self.image_token))
            is_tiled += tiled
            documents.append(
                [
                    self.image_processor.marked(next(sizes), each_tiled, number)
                    for number, each_tiled in enumerate(tiled)
                ]
            )
        if any(any(marks) for document in documents for marks in document):
            features = self._encode_apart(texts, documents, return_tensors, **kwargs)
        else:
            texts = [self._with_places(*pair) for pair in zip(texts, documents, strict=True)]
            if len(texts) > 1:
                kwargs.setdefault("padding", True)
            features = dict(self.tokenizer(texts, return_tensors=return_tensors, **kwargs))
        if pictures:
            features |= self.image_processor(
                pictures, return_tensors=return_tensors, is_tiled=is_tiled
            )
        return BatchFeature(features)

    def _with_places(self, text: str, views: list[list[str]]) -> str:
        """Puts image tokens in place of the marks of pictures, which have so many views."""
        first, *rest = self._between_images(text)
        places = (self.image_token * self.num_image_tokens * len(marks) for marks in views)
        return first + "".join(place + part for place, part in zip(places, rest, strict=True))

    def _between_images(self, text: str) -> list[str]:
        """Returns the texts before, between and after the images of a document."""
        if self._is_chat(text):
            return text.split(self.image_token)
        return re.split(rf"\s*{re.escape(self.image_token)}\s*", text.strip())

    def _is_chat(self, text: str) -> bool:
        bos = self.tokenizer.bos_token
        return bool(self.chat_template and bos) and text.startswith(bos)

    def _encode_apart(
        self,
        texts: list[str],
        documents: list[list[list[str]]],
        return_tensors: str | None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Encodes each text and each mark by itself, as training does.

        Args:
            documents: The text before each view of each picture of each text.
        """
        image_id = self.tokenizer.convert_tokens_to_ids(self.image_token)
        place = [image_id] * self.num_image_tokens
        adds_bos = kwargs.pop("add_special_tokens", True)
        start = list(self.tokenizer("", add_special_tokens=adds_bos)["input_ids"])

        def encoded(text: str) -> list[int]:
            return self.tokenizer(text, add_special_tokens=False)["input_ids"] if text else []

        rows = []
        for text, document in zip(texts, documents, strict=True):
            first, *rest = self._between_images(text)
            row = start + encoded(first)
            for marks, part in zip(document, rest, strict=True):
                for mark in marks:
                    row += encoded(mark) + place
                row += encoded(part)
            rows.append(row)
        padding = kwargs.pop("padding", len(rows) > 1)
        if kwargs:
            raise ValueError(f"{sorted(kwargs)}: not supported for pictures with marks")
        if padding or return_tensors is not None:
            return dict(
                self.tokenizer.pad(
                    {"input_ids": rows}, padding=padding, return_tensors=return_tensors
                )
            )
        return {"input_ids": rows, "attention_mask": [[1] * len(row) for row in rows]}


def flat(images: Any) -> list[Any]:
    if isinstance(images, (list, tuple)):
        return [picture for each in images for picture in flat(each)]
    return [images]


def on_black(picture: PIL.Image.Image, size: tuple[int, int]) -> np.ndarray:
    """Cuts out the center of a picture, or centers a smaller one on black, of this size."""
    if picture.width > size[0] or picture.height > size[1]:
        left, top = (round((a - b) / 2) for a, b in zip(picture.size, size, strict=True))
        picture = picture.crop((left, top, left + size[0], top + size[1]))
    if picture.size != size:
        canvas = PIL.Image.new("RGB", size)
        place = ((size[0] - picture.size[0]) // 2, (size[1] - picture.size[1]) // 2)
        canvas.paste(picture, place)
        picture = canvas
    return np.asarray(picture)


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
