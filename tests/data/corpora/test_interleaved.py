import pytest

from mm1_jax.data.corpora.captions import caption_document
from mm1_jax.data.corpora.interleaved import interleaved_document
from mm1_jax.data.record_files import BadRecord


def test_a_page_that_is_read_in_place_may_not_hold_two_documents():
    """Conversions split such a page; read in place, its mark would reach the tokenizer."""
    mark = "END_OF_DOCUMENT_TOKEN_TO_BE_REPLACED"
    page = {"texts": [None, f"one\n\n{mark}\n\ntwo"], "images": [b"a", None]}
    with pytest.raises(BadRecord, match=f"text 1 has {mark}, .*python -m mm1_jax convert_records"):
        interleaved_document(page)


def test_a_page_of_blank_texts_is_rejected():
    with pytest.raises(BadRecord, match="an empty page"):
        interleaved_document({"texts": [" ", "\n"], "images": [None, None]})


def test_the_caption_is_the_first_non_blank_one():
    captions = [{"text": None}, {"text": " "}, {"text": "a cat "}]
    assert caption_document({"image": b"a", "captions": captions}).segments[1].text == "a cat"
    with pytest.raises(BadRecord, match="no caption"):
        caption_document({"image": b"a", "caption": None})
