import inspect
import re

import pytest

from mm1_jax.data.ingest.formats.base import Format
from mm1_jax.data.ingest.formats.registry import FORMATS, make_format
from mm1_jax.data.record_files import RecordKind


def test_every_format_can_be_made_by_name():
    assert len(FORMATS) == 19
    for name, cls in FORMATS.items():
        form = make_format(name)
        assert isinstance(form, Format) and form.name == name == cls.__module__.split(".")[-1]
        if name != "jsonl":
            assert isinstance(form.kind, RecordKind)


def test_every_option_is_in_the_docstring():
    for cls in FORMATS.values():
        for option in inspect.signature(cls).parameters:
            assert option == "caption_kind" or f"{option}:" in inspect.getdoc(cls)


def test_options_reach_the_constructor(tmp_path):
    assert make_format("jsonl", kind="text").kind is RecordKind.TEXT
    with pytest.raises(ValueError, match="kind='x'"):
        make_format("jsonl", kind="x")


def test_an_unknown_format_lists_the_names():
    with pytest.raises(ValueError, match=re.escape("format 'laion'; expected one of webdataset,")):
        make_format("laion")


def test_an_unknown_option_lists_the_known_ones():
    with pytest.raises(ValueError, match="'mmc4' has no option 'image'; .* images, min_similarity"):
        make_format("mmc4", image="x")
    with pytest.raises(ValueError, match="'folder' has no option 'x'; .* are follow_links"):
        make_format("folder", x=1)
