"""Real scans of handwritten digits: the 1,797 that ship inside scikit-learn, 8 x 8 pixels each.

Records have one of four kinds: captions, questions, interleaved pages, or text about numbers.
Every fifth scan is held out. A record is a pure function of (seed, split, index).
"""

import functools
import importlib.util
import random
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8

from mm1_jax.batch import Record
from mm1_jax.config import REQUIRED, Required, config_class
from mm1_jax.data.corpora.base import Corpus
from mm1_jax.data.corpora.embedded import (
    NUMBERS,
    ORDINALS,
    TO_DOCUMENT,
    DrawnSource,
    Kind,
    PageContent,
    enumeration,
    page_record,
    text_record,
)
from mm1_jax.data.corpora.questions import question_prompt
from mm1_jax.data.images import Augmentation
from mm1_jax.data.sources.base import SplitIndices
from mm1_jax.field_types import PositiveInt

TEST_EVERY = 5
# The kinds of questions, in rotation; most of them ask for the digit.
QUESTION_KINDS = ("digit", "digit", "digit", "parity", "size")


class DigitsSource(DrawnSource):
    """Records of one kind about the scans of one split."""

    @config_class
    class Config(DrawnSource.Config):
        kind: Required[Kind] = REQUIRED
        # Number of interleaved pages or texts of the training split. There is one caption per scan,
        # and one question per scan and entry of `QUESTION_KINDS`.
        num_records: PositiveInt = 8192

    def __init__(self, cfg: Config, *, split: str):
        super().__init__(cfg, split=split)
        pixels, labels = _scans()
        mine = list(SplitIndices(len(labels), split, TEST_EVERY))
        self.pixels = pixels[mine]
        self.labels: list[int] = labels[mine].tolist()

    def __len__(self) -> int:
        num_scans = len(self.labels)
        return {
            Kind.CAPTIONS: num_scans,
            Kind.QUESTIONS: num_scans * len(QUESTION_KINDS),
        }.get(self._config.kind, super().__len__())

    def drawn(self, index: int) -> Record:
        kind = self._config.kind
        rng = random.Random(f"digits/{kind.value}/{self.split}/{self._config.seed}/{index}")
        if kind is Kind.CAPTIONS:
            return {"image": self.pixels[index], "caption": caption(self.labels[index])}
        if kind is Kind.QUESTIONS:
            turn, scan = divmod(index, len(self.labels))
            question_kind = QUESTION_KINDS[(turn + scan) % len(QUESTION_KINDS)]
            return self._question(rng, question_kind, scan)
        if kind is Kind.TEXT:
            return text_record(_fact(rng) for _ in range(rng.randint(3, 8)))
        return page_record(self._page(rng))

    def _question(self, rng: random.Random, kind: str, scan: int) -> dict[str, Any]:
        digit = self.labels[scan]
        question, answer = _ask(rng, kind, digit)
        return {
            "images": [self.pixels[scan]],
            "question": question,
            "answer": answer,
            "caption": caption(digit),
            "kind": kind,
        }

    def _page(self, rng: random.Random) -> PageContent:
        form = rng.choice(("captions", "questions", "order", "sum", "list", "story"))
        if form == "captions":
            scans = self.draw(rng, rng.randint(2, 10))
            return [part for pixels, digit in scans for part in (pixels, caption(digit))]
        if form == "questions":
            return self._question_run(rng)
        if form == "story":
            return _story(rng, self.draw(rng, rng.randint(2, 5)))
        if form == "list":
            scans = self.draw(rng, rng.randint(3, 5))
            digits = [digit for _, digit in scans]
            return [
                f"Here are {NUMBERS[len(scans)]} digits.",
                *(pixels for pixels, _ in scans),
                f"They are {enumeration(digits)}. "
                f"The largest is {max(digits)} and the smallest is {min(digits)}.",
            ]
        (first, a), (second, b) = self.draw(rng, 2)
        if form == "sum":
            return [first, second, f"{a} plus {b} is {a + b}."]
        order = "They are the same." if a == b else f"The {ORDINALS[a < b]} is larger."
        return [first, second, f"The first digit is {a} and the second is {b}. {order}"]

    def _question_run(self, rng: random.Random) -> PageContent:
        """Returns a page of questions in the form of a few-shot prompt, often all of one kind."""
        page: PageContent = []
        kinds = QUESTION_KINDS if rng.random() < 0.5 else (rng.choice(QUESTION_KINDS),)
        for _ in range(rng.randint(2, 9)):
            record = self._question(rng, rng.choice(kinds), rng.randrange(len(self.labels)))
            answered = f"{question_prompt(record['question'])} {record['answer']}"
            page += [*record["images"], answered]
        return page

    def draw(self, rng: random.Random, num_scans: int) -> list[tuple[np.ndarray, int]]:
        scans = [rng.randrange(len(self.labels)) for _ in range(num_scans)]
        return [(self.pixels[scan], self.labels[scan]) for scan in scans]


def corpus(kind: Kind, **source: Any) -> Corpus.Config:
    """Returns the corpus of a kind; `source` sets fields of `DigitsSource`."""
    return Corpus.default_config().set(
        name=f"digits_{kind.value}",
        source=DigitsSource.default_config().set(kind=kind, **source),
        to_document=TO_DOCUMENT[kind],
        augmentation=augmentation(),
    )


def augmentation() -> Augmentation.Config:
    """Returns the augmentation of scans in training."""
    # Shifts a scan, which is 8 pixels wide, by up to one pixel.
    return Augmentation.default_config().set(shift=1 / 8, rotate=0.2, scale=0.12, contrast=0.2)


def caption(digit: int) -> str:
    """Returns the only caption of a digit."""
    return f"a handwritten digit {digit}"


def _ask(rng: random.Random, kind: str, digit: int) -> tuple[str, str]:
    """Returns a question of a kind, and its answer."""
    if kind == "digit":
        return rng.choice(("what digit is this?", "which digit is written here?")), str(digit)
    if kind == "parity":
        return "is this digit even or odd?", _parity(digit)
    # Half of the digits are larger; another limit would make one answer more likely.
    return "is this digit larger than 4?", "yes" if digit > 4 else "no"


def _parity(digit: int) -> str:
    return "odd" if digit % 2 else "even"


def _story(rng: random.Random, scans: list[tuple[np.ndarray, int]]) -> PageContent:
    page: PageContent = ["Look at this digit."]
    for place, (pixels, digit) in enumerate(scans):
        told = rng.choice(
            (
                f"It is a handwritten {NUMBERS[digit]}.",
                f"This is {digit}, an {_parity(digit)} digit.",
                f"Somebody wrote the digit {digit} here.",
            )
        )
        is_last = place == len(scans) - 1
        page += [pixels, told if is_last else f"{told} Now look at the next one."]
    return page


def _fact(rng: random.Random) -> str:
    """Returns a true sentence about numbers."""
    a, b = rng.randrange(10), rng.randrange(10)
    low, high = min(a, b), max(a, b)
    name = NUMBERS
    fact = rng.choice(
        (
            f"{name[a]} plus {name[b]} is {name[a + b]}.",
            f"{name[high]} minus {name[low]} is {name[high - low]}.",
            f"{name[a + 1]} comes after {name[a]}.",
            f"{name[a]} comes before {name[a + 1]}.",
            f"{name[a]} is {_parity(a)}.",
            f"the digit {a} is called {name[a]}.",
            f"{a} plus {b} is {a + b}.",
            f"is {a} larger than {b}? {'yes' if a > b else 'no'}.",
            f"{name[high]} is larger than {name[low]}."
            if low < high
            else f"{name[low]} and {name[high]} are the same.",
            f"counting from {name[low]} to {name[high]}: {', '.join(name[low : high + 1])}.",
        )
    )
    return fact[0].upper() + fact[1:]


@functools.cache
def _scans() -> tuple[UInt8[np.ndarray, "n 8 8 3"], Int[np.ndarray, "n"]]:
    # The file of `sklearn.datasets.load_digits`, read directly as that import takes a second.
    package = importlib.util.find_spec("sklearn")
    assert package is not None and package.submodule_search_locations, "scikit-learn is required"
    path = Path(package.submodule_search_locations[0], "datasets", "data", "digits.csv.gz")
    table = np.loadtxt(path, delimiter=",")
    gray = np.rint(table[:, :-1].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    return np.repeat(gray[..., None], 3, axis=-1), table[:, -1].astype(int)
