"""Small tar shards in the layout of img2dataset."""

import io
import json
import tarfile
from pathlib import Path


def shard(path: Path, samples: list[tuple[str, dict[str, bytes]]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for key, parts in samples:
            for extension, data in parts.items():
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return path


def sample(key: str, url: object, picture: bytes = b"", **parts: bytes):
    about = json.dumps({"url": url, "key": key}).encode()
    return key, {"jpg": picture or key.encode(), "json": about, **parts}
