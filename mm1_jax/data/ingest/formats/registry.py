"""The formats by the names that users give them."""

import inspect
from typing import Any

from mm1_jax.data.ingest.formats.academic import Academic
from mm1_jax.data.ingest.formats.base import Format
from mm1_jax.data.ingest.formats.cauldron import Cauldron
from mm1_jax.data.ingest.formats.chat_webdataset import ChatWebdataset
from mm1_jax.data.ingest.formats.coco_captions import CocoCaptions
from mm1_jax.data.ingest.formats.folder import Folder
from mm1_jax.data.ingest.formats.hf_captions import HfCaptions
from mm1_jax.data.ingest.formats.img2dataset_parquet import Img2datasetParquet
from mm1_jax.data.ingest.formats.jsonl import Jsonl
from mm1_jax.data.ingest.formats.llava import Llava
from mm1_jax.data.ingest.formats.llava_mixture import LlavaMixture
from mm1_jax.data.ingest.formats.llava_parquet import LlavaParquet
from mm1_jax.data.ingest.formats.mmc4 import Mmc4
from mm1_jax.data.ingest.formats.obelics import Obelics
from mm1_jax.data.ingest.formats.pixmo import Pixmo
from mm1_jax.data.ingest.formats.seqio import Seqio
from mm1_jax.data.ingest.formats.swift import Swift
from mm1_jax.data.ingest.formats.text import PlainText
from mm1_jax.data.ingest.formats.vqa import Vqa
from mm1_jax.data.ingest.formats.webdataset import Webdataset

FORMATS: dict[str, type[Format]] = {
    cls.name: cls
    for cls in (
        *(Webdataset, Img2datasetParquet, Obelics, Mmc4, CocoCaptions, Llava),
        *(Vqa, Folder, HfCaptions, Jsonl, PlainText, Seqio),
        *(LlavaParquet, LlavaMixture, Cauldron, Pixmo, ChatWebdataset, Swift, Academic),
    )
}


def make_format(name: str, **options: Any) -> Format:
    """Makes the format of a name with the options of its constructor.

    Raises:
        ValueError: There is no such format, or it has no such option or value.
    """
    if name not in FORMATS:
        raise ValueError(f"format {name!r}; expected one of {', '.join(FORMATS)}")
    known = [*inspect.signature(FORMATS[name]).parameters, "follow_links"]
    for option in options:
        if option not in known:
            there = ", ".join(known)
            raise ValueError(f"format {name!r} has no option {option!r}; its options are {there}")
    return FORMATS[name].make(**options)
