"""Small data sets of pictures in one color each, in the layouts that users have."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

COLORS = {"red": (200, 20, 30), "green": (10, 180, 40), "blue": (20, 40, 220)}


def picture(color: str, seed: int, size: tuple[int, int] = (11, 8), kind: str = "PNG") -> bytes:
    """Returns a file of a noisy picture in a color."""
    noise = np.random.default_rng(seed).integers(-20, 20, (*size[::-1], 3))
    pixels = np.clip(np.array(COLORS[color]) + noise, 0, 255).astype(np.uint8)
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def write_class_folders(folder: Path, number: int = 4) -> Path:
    for split in ("train", "val"):
        for place, color in enumerate(COLORS):
            own = folder / split / f"dark_{color}"
            own.mkdir(parents=True)
            for i in range(number):
                data = picture(color, seed=100 * place + i + (split == "val") * 50)
                (own / f"{i}.png").write_bytes(data)
    return folder


def write_shards(folder: Path, samples: list[list[dict[str, bytes]]], **files: str) -> Path:
    """Writes CLIP_benchmark's layout with these samples per shard of the test split."""
    (folder / "test").mkdir(parents=True)
    (folder / "test" / "nshards.txt").write_text(f"{len(samples)}\n")
    for number, shard in enumerate(samples):
        with tarfile.open(folder / "test" / f"{number}.tar", "w") as tar:
            for i, sample in enumerate(shard):
                for extension, data in sample.items():
                    member = tarfile.TarInfo(f"s{i:04}.{extension}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    for name, text in files.items():
        (folder / f"{name}.txt").write_text(text)
    return folder


def write_json(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path
