"""Compares the caption tokenizer with Stanford's on generated captions, or stores a sample.

Needs Java and pycocoevalcap, which has the jar of CoreNLP 3.4.1:

    python tests/references/ptb_tokens.py --captions=40000 --seed=1
    python tests/references/ptb_tokens.py --captions=400 --seed=0 \
        --write=tests/evals/scoring/ptb_tokens.json

Captions consist of words, abbreviations, contractions, numbers and addresses, with any punctuation
before, after and inside of them.
"""

import argparse
import importlib.util
import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from mm1_jax.evals.scoring.ptb_tokenizer import PUNCTUATION, tokenize

WORDS = """
    a an the man woman dog cat bed horse street train young red black white wooden small two three
    on in of with near under holding riding sitting standing playing looking street bus plate pizza
    cake umbrella snow ocean kitchen laptop phone giraffe elephant motorcycle skateboard surfboard
    traffic regardless renaissance museum president engraving portrait underscore grande naive
    and or is are
"""
ABBREVIATIONS = """
    Mr. Mrs. Dr. St. No. no. U.S. a.m. p.m. etc. vs. e.g. i.e. Fig. Jan. Sun. Inc. Co. Ave. ft. lbs.
    oz. Jr. D.C. T.V. J. K. C. ca. art. pp. Mass. Calif. Ill. Tex. Pa. Va. Ph.D.
"""
CONTRACTIONS = """
    it's dog's dogs' isn't don't I'm we're they've he'll she'd o'clock c'est C'est d'or l'eau qu'il
    n'est s'il j'ai jusqu'a aujourd'hui rock'n'roll more'n less'n y'all ma'am ol' 'tis 'twas 'em
    'cause 'til '90s 1990's O'Brien D'Angelo cap'n s'mores cannot gonna wanna lemme d' l' goin' 'n'
    'N \u2019tis \u2018tis don\u2019t dog\u2019s c\u2019est l\u2019eau \u2019em \u201990s
    \u2019n\u2019 O\u2019Brien y\u2019all
"""
NUMBERS = """
    1 2 10 22 1/2 3/4 1,000 3.5 5% $5 $5.00 10:30 10:30am 1st 1990s '80s #1 2x4 100ft 3-d 24/7 2-3
    555-1234 12/25/2012 .5 -5 1. \u00bd 1\u00bd \u20ac5 \u00a35 90\u00b0F 5\u2032 m\u00b2 1\u20132
"""
OTHERS = """
    t-shirt red-and-white black/white and/or AT&T R&B a&b w/ www.foo.com Www.foo.com/a http://x.org
    Http://x.org HTTPS://x.org/a?b=c me@site.com @user #tag :) :( ;) <3 C++ F# co-op X-ray x-ray
    anti- pre- U-turn s.u.v. (s) [sic] {x} *bold* _under_ = + | ^ ` -lrb- -RSB- &amp; &mdash; <br>
    caf\u00e9 na\u00efve x\xady soft\xadware \xad t\u2010shirt t\u2011shirt red\u2010and\u2010white
    \u201chi\u201d \u2018hi\u2019 a\u2014b \u2014 \u2013 \u2026 \u2022 \u2122 \u00ab \u00bb
"""
MARKS = """
    . , ; : ! ? ' " '' `` ` ... .. - -- ( ) [ ] / & % # * \u2026 \u2014 \u2013 \u201c \u201d \u2018
    \u2019 ., .; ." ," ?! .) .- ...- -...
"""
INNER = "- / ' \u2019 \u2018 ` ... .. . , -- \u2010 \u2011 \xad & _ : ..- ...- @"


def made_captions(count: int, seed: int) -> list[str]:
    """Generates captions as a function of the seed."""
    rng = random.Random(seed)
    kinds = [x.split() for x in (WORDS, ABBREVIATIONS, CONTRACTIONS, NUMBERS, OTHERS)]
    words, marks, inner = WORDS.split(), MARKS.split(), INNER.split()

    def word() -> str:
        text = rng.choice(rng.choices(kinds, (60, 7, 11, 9, 13))[0])
        text = rng.choices((text, text.capitalize(), text.upper()), (90, 6, 4))[0]
        how = rng.random()
        if how < 0.10:
            return text + rng.choice(marks)
        if how < 0.13:
            return rng.choice(marks) + text
        if how < 0.16:
            return text + rng.choice(inner) + rng.choice(words)
        if how < 0.18:
            place = rng.randrange(len(text) + 1)
            return text[:place] + rng.choice(inner) + text[place:]
        return text

    captions = []
    for _ in range(count):
        text = " ".join(word() for _ in range(rng.randrange(3, 11)))
        text = text[0].upper() + text[1:] if rng.random() < 0.6 else text
        captions.append(text + rng.choice(("", "", "", ".", ".", "!", "...", '."')))
    return captions


def apart(captions: Sequence[str]) -> list[str]:
    """Inserts a line after each caption, so that its last period does not depend on the next."""
    return [line for caption in captions for line in (caption, "z")]


def original_tokens(captions: Sequence[str]) -> list[list[str]]:
    """Returns the tokens of Stanford's tokenizer for each caption on its own."""
    spec = importlib.util.find_spec("pycocoevalcap")
    if spec is None or spec.origin is None:
        sys.exit("error: needs pycocoevalcap; pip install 'mm1_jax[caption-metrics]'")
    jar = Path(spec.origin).parent / "tokenizer" / "stanford-corenlp-3.4.1.jar"
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", suffix=".txt") as file:
        file.write("\n".join(apart(captions)))
        file.flush()
        command = ["java", "-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer"]
        command += ["-preserveLines", "-lowerCase", "-encoding", "UTF-8", file.name]
        lines = subprocess.run(command, capture_output=True, check=True).stdout.decode().split("\n")
    return [
        [token for token in line.split(" ") if token and token not in PUNCTUATION]
        for line in lines[: 2 * len(captions) : 2]
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--captions", type=int, default=40_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--write", type=Path, help="store captions and original tokens")
    flags = parser.parse_args()
    captions = made_captions(flags.captions, flags.seed)
    expected = original_tokens(captions)
    got = tokenize(apart(captions))[::2]
    wrong = [
        (caption, " ".join(a), " ".join(b))
        for caption, a, b in zip(captions, expected, got, strict=True)
        if a != b
    ]
    print(f"{len(captions)} captions, {len(wrong)} differ")
    for row in wrong[:20]:
        print(*map(ascii, row), sep="\n  ")
    if flags.write:
        rows = [
            [caption, " ".join(tokens)] for caption, tokens in zip(captions, expected, strict=True)
        ]
        flags.write.write_text(json.dumps(rows, indent=0) + "\n", encoding="utf-8")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
