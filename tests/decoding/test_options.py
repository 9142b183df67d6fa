"""Options of decoding: their errors, and the text of an answer."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from mm1_jax.decoding.options import DecodingOptions, before_stop
from mm1_jax.decoding.sampling import Sampling

OPTIONS = DecodingOptions(4, eos=2, forbidden=(9, 3))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens=0: must be at least 1"),
        ({"eos": 0}, "eos=0 is forbidden or equals pad=0"),
        ({"eos": 9}, "eos=9 is forbidden"),
        ({"cache_dtype": "float16"}, "cache_dtype='float16'"),
    ],
)
def test_invalid_options_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        replace(OPTIONS, **fields)


def test_padding_is_forbidden_and_the_order_of_forbidden_tokens_does_not_matter():
    assert OPTIONS.forbidden == (0, 3, 9)
    assert DecodingOptions(4, eos=2, forbidden=(3, 9, 3)) == OPTIONS


def test_options_that_differ_in_seed_and_stop_strings_share_a_program():
    other = replace(OPTIONS, seed=3, stop_strings=("x",))
    assert other.static_options() == OPTIONS.static_options()
    assert replace(OPTIONS, sampling=Sampling(1.0)).static_options() != OPTIONS.static_options()


def test_the_text_of_an_answer_ends_before_the_first_stop_string():
    options = replace(OPTIONS, stop_strings=("", "c", "ef"))
    assert options.text([1], lambda tokens: " ab ef cd") == " ab "
    assert OPTIONS.text([1], lambda tokens: " ab ") == " ab "


@pytest.mark.parametrize(
    ("text", "stop_strings", "answer"),
    [
        (" 7 Question: what, now?", ("\n", ",", "Question"), "7"),
        ("a red circle\nanother", ("\n",), "a red circle"),
        (" whole ", ("\n",), "whole"),
        ("whole", (), "whole"),
    ],
)
def test_an_answer_ends_before_the_first_stop_string(text, stop_strings, answer):
    assert before_stop(text, stop_strings).strip() == answer


def test_special_tokens_come_from_the_tokenizer():
    tokenizer = SimpleNamespace(eos=2, pad=5, not_text=(7, 6))
    wanted = DecodingOptions(4, eos=2, pad=5, forbidden=(6, 7), seed=1)
    assert DecodingOptions.of(tokenizer, 4, seed=1) == wanted
