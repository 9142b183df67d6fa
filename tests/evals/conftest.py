"""An input of the embedded digits, small enough to build for each module."""

import os
from pathlib import Path

import pytest

from mm1_jax.data.corpora import digits
from mm1_jax.data.corpora.embedded import Kind
from mm1_jax.data.input import Input
from mm1_jax.data.mixture import CorpusWeight, Stream


def _stream(kind: Kind, weight: int) -> Stream.Config:
    corpora = [CorpusWeight(corpus=digits.corpus(kind), weight=1)]
    return Stream.default_config().set(name=kind.value, weight=weight, corpora=corpora)


@pytest.fixture(scope="session")
def input() -> Input:
    cfg = Input.default_config().set(
        streams=[_stream(Kind.CAPTIONS, 2), _stream(Kind.QUESTIONS, 1)],
        batch_size=3,
        max_sequence_length=160,
        max_images=4,
        num_image_tokens=2,
        image_size=8,
    )
    return cfg.instantiate()


@pytest.fixture(scope="session")
def metrics_data() -> Path:
    """Predictions with their official scores."""
    folder = os.environ.get("MM1_TEST_DATA")
    if not folder:
        pytest.skip("MM1_TEST_DATA is not set")
    return Path(folder, "metrics")
