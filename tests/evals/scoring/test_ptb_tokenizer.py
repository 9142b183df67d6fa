import json
from pathlib import Path

import pytest

from mm1_jax.evals.scoring.ptb_tokenizer import ptb_tokens, tokenize


def tokens(text: str) -> list[str]:
    return tokenize([text])[0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # Tokens of CoreNLP 3.4.1, without the punctuation that the metrics drop.
        ("The dog's bowl isn't full...", "the dog 's bowl is n't full"),
        ("They don\u2019t; it\u2019s O\u2019Brien\u2019s", "they do n't it 's o\u2019brien 's"),
        ("I cannot, I'm gonna", "i can not i 'm gon na"),
        ("(red) [blue] {green}", "-lrb- red -rrb- -lsb- blue -rsb- -lcb- green -rcb-"),
        ("\u201chello\u201d and \u2018bye\u2019", "hello and bye"),
        ("stop\u2026 wait \u2014 go \u2013 now -- or - never", "stop wait go now or never"),
        ("Dr. Smith of St. Louis ate. Etc.", "dr. smith of st. louis ate etc."),
        ("22 3/4 Street and \u00bd cup", "22\xa03/4 street and 1/2 cup"),
        ("$5.00, \u20ac5, \u00a35 or 5%", "$ 5.00 $ 5 # 5 or 5 %"),
        ("a red-and-white t-shirt", "a red-and-white t-shirt"),
        ("black/white AT&T a&b", "black/white at&t a & b"),
        ("Really?! Yes!! No!", "really ?! yes !! no"),
        ("at 10:30am in the '80s and 1990s", "at 10:30 am in the '80s and 1990s"),
        ("a :) and a :(", "a :-rrb- and a :-lrb-"),
        ("see www.foo.com and a@b.com", "see www.foo.com and a@b.com"),
        ("na\u00efve caf\u00e9 \U0001f373 dish", "na\u00efve caf\u00e9 dish"),
        ("No. 5, Fig. 3, no. The end", "no. 5 fig. 3 no the end"),
        ("", ""),
    ],
)
def test_tokens_equal_those_of_the_penn_treebank(text, expected):
    assert tokens(text) == expected.split(" ") if expected else tokens(text) == []


def test_the_period_of_an_initial_depends_on_the_next_word():
    assert tokens("vitamin C. Lamp") == ["vitamin", "c.", "lamp"]
    assert tokens("vitamin C. The lamp") == ["vitamin", "c", "the", "lamp"]


def test_lines_are_tokenized_independently_except_for_final_periods():
    lines = ["ride along D.", "A bird's wing.", "", "two\nlines", "it"]
    assert tokenize(lines) == [
        ["ride", "along", "d"],
        ["a", "bird", "'s", "wing"],
        [],
        ["two", "lines"],
        ["it"],
    ]
    assert ptb_tokens([]) == []


def test_ptb_tokens_keep_punctuation():
    assert ptb_tokens(["a (b), cat."]) == [["a", "-lrb-", "b", "-rrb-", ",", "cat", "."]]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # Elisions, and an apostrophe before a word.
        ("c'est C\u2019EST l' d' qu'il", "c'est c\u2019est l' d' qu'il"),
        ("'tis \u2019tis more'n 'EM '80S", "'t is tis more 'n 'em '80s"),
        ("A d''s dog; I'll", "a d' 's dog i 'll"),
        # Other hyphens; a soft hyphen is not part of a word.
        ("x\xady soft\xadware, a \xad b", "xy software a b"),
        ("t\u2010shirt red\u2011and\u2011white", "t\u2010shirt red\u2011and\u2011white"),
        ("x...-x... a...- b", "x...-x a. b"),
        # A period before a mark inside of a sentence stays.
        ("no., bed.; 1.: t-shirt., 3.5., it's.,", "no. bed. 1. t-shirt. 3.5 it 's"),
        ("Va.n Va.nx Mr.n", "va. n va.nx mr.n"),
        ("Http://x.org me@site.com, a@@b", "http://x.org me@site.com, a@@b"),
        ("stre`et A`ll urgen`t", "stre`et a`ll urge n`t"),
        ("-LRB- -rsb- &nbsp; F# caf&eacute;", "-lrb- -rsb- f# caf&eacute;"),
    ],
)
def test_rare_kinds_of_words_are_tokenized_as_by_the_original(text, expected):
    assert " ".join(tokens(text)) == expected


def test_tokens_of_generated_captions_equal_those_of_the_original():
    """The captions and tokens come from tests/references/ptb_tokens.py."""
    rows = json.loads(Path(__file__).with_name("ptb_tokens.json").read_text(encoding="utf-8"))
    captions = [line for caption, _ in rows for line in (caption, "z")]
    got = [" ".join(line) for line in tokenize(captions)[::2]]
    wrong = [(row, found) for row, found in zip(rows, got, strict=True) if row[1] != found]
    assert len(rows) == 400 and wrong == []


@pytest.mark.parametrize("name", ["coco80_fold0", "coco80_fold1", "openstax"])
def test_tokens_equal_the_stored_tokens_of_the_original(metrics_data, name):
    stored = json.loads((metrics_data / "caption" / f"{name}.json").read_text())
    lines = [line for key in stored["refs"] for line in stored["refs"][key]]
    expected = [line for key in stored["refs"] for line in stored["ptb_refs"][key]]
    lines += [stored["pred"][key] for key in stored["refs"]]
    expected += [stored["ptb_pred"][key] for key in stored["refs"]]
    got = [" ".join(line) for line in tokenize(lines)]
    wrong = [pair for pair in zip(got, expected, strict=True) if pair[0] != pair[1]]
    assert wrong == []
