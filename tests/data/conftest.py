"""Data fixtures: the shipped tokenizer, an example builder, the folder of real data."""

import os
from pathlib import Path

import pytest

from mm1_jax.data.examples import ExampleBuilder
from mm1_jax.data.tokenizers.sentencepiece import Tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.default_config().instantiate()


@pytest.fixture
def builder(tokenizer) -> ExampleBuilder:
    return ExampleBuilder(tokenizer, num_image_tokens=4, max_sequence_length=256, max_images=16)


@pytest.fixture(scope="session")
def test_data() -> Path:
    folder = os.environ.get("MM1_TEST_DATA")
    if not folder:
        pytest.skip("MM1_TEST_DATA is not set")
    return Path(folder)
