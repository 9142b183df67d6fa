"""Errors where the library of an extra is not installed."""

import sys
from pathlib import Path

import pytest

from mm1_jax.data.ingest.formats.registry import make_format
from mm1_jax.data.sources.tfds import TfdsSource
from mm1_jax.data.tokenizers.seqio import SeqioTokenizer


@pytest.fixture(autouse=True)
def _without(monkeypatch):
    for name in ("seqio", "tensorflow_datasets"):
        monkeypatch.setitem(sys.modules, name, None)


def test_a_missing_library_names_its_extra():
    with pytest.raises(ValueError, match=r"TfdsSource needs .*pip install 'mm1_jax\[tfds\]'"):
        TfdsSource.default_config().set(name="x").instantiate(split="train")
    with pytest.raises(ValueError, match=r"SeqioTokenizer needs .*pip install 'mm1_jax\[seqio\]'"):
        SeqioTokenizer.default_config().set(vocabulary="seqio.ByteVocabulary").instantiate()
    with pytest.raises(ValueError, match=r"'seqio' needs seqio .*pip install 'mm1_jax\[seqio\]'"):
        make_format("seqio", task="x").units(Path(__file__))
