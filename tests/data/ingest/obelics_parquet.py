"""Parquet in the layout of OBELICS."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq


def write(path: Path, rows: Sequence[dict[str, Any]], images: pa.DataType | None = None):
    images = images or pa.list_(pa.string())
    schema = pa.schema(
        {
            "images": images,
            "texts": pa.list_(pa.string()),
            "metadata": pa.string(),
            "general_metadata": pa.string(),
        }
    )
    pq.write_table(pa.Table.from_pylist(rows, schema), path)
