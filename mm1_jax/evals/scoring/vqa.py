"""VQA accuracy, with several ways to normalize answers before the comparison.

Ten people answered each question. The accuracy of an answer is min(1, n / 3), where n is the number
of people who gave it, averaged over leaving out each of the ten people (Antol et al., 2015).
"""

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from mm1_jax.evals.scoring.items import Item, Scored, Tally, of_group, percentages
from mm1_jax.evals.scoring.texts import normalise

Normaliser = Callable[[str], str]
# (answer, answers of the people) -> accuracy, 0 to 1.
Rule = Callable[[str, Sequence[str]], float]

_NUMBER_WORDS = "zero one two three four five six seven eight nine ten"
_DIGITS = {"none": "0"} | {word: str(i) for i, word in enumerate(_NUMBER_WORDS.split())}
_ARTICLES = frozenset(("a", "an", "the"))
# These contractions replace the same words with one apostrophe missing.
_CONTRACTED = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't
    haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't
    mightn't've must've mustn't needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've
    shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll
    someone's something'd something'd've something'll that's there'd there'd've there're there's
    they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're
    what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're
    why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're
    you've
"""
_CONTRACTIONS = {
    word[: mark.start()] + word[mark.end() :]: word
    for word in _CONTRACTED.split()
    for mark in re.finditer("'", word)
} | {"somebody'd": "somebodyd"}

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_EVALAI_COMMA_IN_NUMBER = re.compile(r"(?<=\d),+(?=\d)")
# The official expression. It matches a period that no digit follows: "(?!<=" is a typo for a
# lookbehind, and published figures were computed with it.
_FULL_STOP = re.compile(r"(?!<=\d)\.(?!\d)")
# The official call passes the flag re.UNICODE (32) as the maximum number of replacements.
_MAX_FULL_STOPS = 32


def without_punctuation(text: str, comma: re.Pattern[str] = _COMMA_IN_NUMBER) -> str:
    """Removes punctuation, as the official code does.

    A mark is removed if it is next to a space anywhere in the text, or if `comma` matches the text;
    otherwise it is replaced by a space.
    """
    result = text
    for mark in _PUNCTUATION:
        beside_space = f"{mark} " in text or f" {mark}" in text
        result = result.replace(mark, "" if beside_space or comma.search(text) else " ")
    return _FULL_STOP.sub("", result, count=_MAX_FULL_STOPS)


def plain_words(text: str) -> str:
    """Lowercases, replaces number words by digits, drops articles and restores apostrophes."""
    words = [_DIGITS.get(word, word) for word in text.lower().split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def evalai(text: str) -> str:
    """Normalizes an answer like the challenge server, EvalAI, and TextVQA's code (m4c)."""
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    text = text.replace("\n", " ").replace("\t", " ").strip()
    return plain_words(without_punctuation(text, _EVALAI_COMMA_IN_NUMBER))


def lowered(text: str) -> str:
    """Lowercases and strips periods at the end, to prepare a reply for the official code."""
    return text.strip().lower().rstrip(".")


def agreement(answer: str, answers: Sequence[str]) -> float:
    """Returns the VQA accuracy of an answer, 0 to 1, comparing the strings as they are."""
    count = sum(other == answer for other in answers)
    # Leaving out a person who gave the answer reduces the count by one.
    shares = [min(1.0, (count - (other == answer)) / 3) for other in answers]
    return sum(shares) / len(shares)


def agreement_without_ids(answer: str, answers: Sequence[str], remarks: Sequence[object]) -> float:
    """Returns the VQA accuracy of the official code when answers lack an `answer_id`: a pitfall.

    To leave out one person, the official code drops all answers that equal this person's, `remarks`
    included. Without ids, several people's answers can be equal and are all dropped.

    Args:
        remarks: Other fields of each person's answer, such as the confidence in VizWiz.
    """
    people = list(zip(answers, remarks, strict=True))
    shares = []
    for left_out in people:
        count = sum(other[0] == answer for other in people if other != left_out)
        shares.append(min(1.0, count / 3))
    return sum(shares) / len(shares)


def official_accuracy(
    answer: str,
    answers: Sequence[str],
    agreement: Callable[[str, Sequence[str]], float] = agreement,
) -> float:
    """Returns the VQA accuracy of the published code, 0 to 1.

    It normalizes only if the people disagree: if all answered "dakota", then "Dakota" is wrong.
    Passing `lowered(answer)` or `evalai(answer)` avoids that.
    """
    answer, answers = _one_line(answer), [_one_line(other) for other in answers]
    if len(set(answers)) > 1:
        answers = [plain_words(without_punctuation(other)) for other in answers]
        answer = plain_words(without_punctuation(answer))
    return agreement(answer, answers)


def _one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def processed_accuracy(
    answer: str, answers: Sequence[str], normalise: Normaliser = evalai
) -> float:
    """Returns the VQA accuracy of normalized texts, 0 to 1; `evalai` is the rule of TextVQA."""
    return agreement(normalise(answer), [normalise(other) for other in answers])


# Metrics of a model's answers, and their rules.
RULES: Mapping[str, Rule] = {"acc_official": official_accuracy, "acc_processed": processed_accuracy}


def vqa_accuracy(items: Sequence[Item], rules: Mapping[str, Rule] = RULES) -> Scored:
    """VQA accuracy in percent, a column per rule; an answer with at least 0.5 counts as right."""
    cases = [(item.text, item.record["answers"]) for item in items]
    return Scored(
        correct=[processed_accuracy(*case) >= 0.5 for case in cases],
        columns={name: np.array([rule(*case) for case in cases]) for name, rule in rules.items()},
        combine=percentages,
    )


def vqav2_accuracy(items: Sequence[Item]) -> Scored:
    """VQA accuracy over all questions, and per type of answer."""
    scored = vqa_accuracy(items)
    types = [item.record.get("answer_type", "") for item in items]
    by_type = {
        f"acc_processed_{normalise(name).replace('/', '_')}": of_group(
            scored.columns["acc_processed"], types, name
        )
        for name in sorted({*types} - {""})
    }
    # The questions about a picture are not independent.
    units = [item.record["image"] for item in items]
    return replace(scored, columns={**scored.columns, **by_type}, units=units)


def okvqa_accuracy(items: Sequence[Item], rules: Mapping[str, Rule] = RULES) -> Scored:
    """VQA accuracy, and `acc_stemmed` of replies stemmed like the answers of OK-VQA."""
    pairs = [
        (raw, stem)
        for item in items
        if "raw_answers" in item.record
        for raw, stem in zip(item.record["raw_answers"], item.record["answers"], strict=True)
        if isinstance(raw, str)
    ]
    stem = OkVqaStemmer(OkVqaStemmer.learn(pairs))

    def stemmed(answer: str, answers: Sequence[str]) -> float:
        return agreement(stem(evalai(answer)), [evalai(other) for other in answers])

    return vqa_accuracy(items, {**rules, "acc_stemmed": stemmed})


def vizwiz_accuracy(items: Sequence[Item], rules: Mapping[str, Rule]) -> Scored:
    """VQA accuracy, and `acc_official_missing_answer_id`: the official code's without `answer_id`.

    The latter is computed from the `remarks` of the records. If they have none, it is the mean of
    their field `acc_official_missing_answer_id`, and without that field it is left out.
    """
    scored, name = vqa_accuracy(items, rules), "acc_official_missing_answer_id"
    if all("remarks" in item.record for item in items):
        values = [100 * _without_ids(item) for item in items]
    elif all(name in item.record for item in items):
        values = [item.record[name] for item in items]
    else:
        return scored

    def combine(tallies: Mapping[str, Tally]) -> dict[str, np.ndarray]:
        return percentages(tallies) | {name: tallies[name].mean}

    return replace(scored, columns={**scored.columns, name: np.array(values)}, combine=combine)


def _without_ids(item: Item) -> float:
    agreement = functools.partial(agreement_without_ids, remarks=item.record["remarks"])
    return official_accuracy(item.text, item.record["answers"], agreement)


class OkVqaStemmer:
    """Stems words like the answers of OK-VQA, which are scored as stems.

    OK-VQA's annotations hold each answer as given (`raw_answer`) and stemmed (`answer`). A word in
    these answers gets the stem that it has there. Plurals and -ing forms of other words are stemmed
    by rule, which differs from the original, made with NLTK, in rare words.
    """

    def __init__(self, stems: Mapping[str, str] | None = None):
        """Takes the known stems of words, which `learn` finds."""
        self._stems = {**_OK_VQA_STEMS, **(stems or {})}

    @staticmethod
    def learn(pairs: Sequence[tuple[str, str]]) -> dict[str, str]:
        """Returns the most frequent stem of each word in pairs of raw and stemmed answers."""
        votes: dict[str, dict[str, int]] = {}
        for raw, stemmed in pairs:
            words, stems = raw.lower().split(), stemmed.lower().split()
            if len(words) == len(stems):
                for word, stem in zip(words, stems, strict=True):
                    counts = votes.setdefault(word, {})
                    counts[stem] = counts.get(stem, 0) + 1
        return {word: max(counts, key=lambda stem: counts[stem]) for word, counts in votes.items()}

    def __call__(self, text: str) -> str:
        return " ".join(self._stem(word) for word in text.lower().split())

    def _stem(self, word: str) -> str:
        if word in self._stems:
            return self._stems[word]
        if word.endswith("ing"):
            return _without_ing(word)
        return _singular(word)


# Words that the rules below would change wrongly.
_UNCHANGED = """
    are bus ceiling chess christmas during evening gas glass his is its kansas las news paris people
    police sheep tennis texas this us vegas was yes
"""
_IRREGULAR = """
    children:child clothes:cloth clothing:cloth cookies:cookie dangerous:danger dying:die feet:foot
    buses:bus geese:goose gloves:glove jeans:jean knives:knife leaves:leaf lenses:lens loaves:loaf
    lying:lie men:man mice:mouse morning:morn movies:movie pies:pie shoes:shoe skiing:ski ties:tie
    teeth:tooth tying:tie urinating:urine wives:wife wolves:wolf women:woman
"""
_OK_VQA_STEMS = {word: word for word in _UNCHANGED.split()} | {
    word: stem for word, _, stem in (pair.partition(":") for pair in _IRREGULAR.split())
}
_VOWELS = "aeiou"


def _without_ing(word: str) -> str:
    stem = word.removesuffix("ing")
    if not any(letter in "aeiouy" for letter in stem) or stem.endswith("th") and len(stem) < 5:
        return word
    last, before = stem[-1], stem[-2:-1]
    if last == before and last not in "lsz":
        return stem[:-1]
    long_vowel = len(stem) > 2 and stem[-3] in _VOWELS
    consonant_vowel_consonant = before in (*_VOWELS,) and last not in _VOWELS + "wxy"
    vowels = sum(letter in _VOWELS for letter in stem)
    if (
        last in "cvu"
        or last in "sz"
        and before != last
        and (before in (*_VOWELS,) or before == "r")
        or last == "l"
        and before not in (*_VOWELS, "l", "r")
        or stem.endswith("at")
        and vowels > 1
        and not long_vowel
        or consonant_vowel_consonant
        and vowels == 1
        and not long_vowel
    ):
        return stem + "e"
    return stem


def _singular(word: str) -> str:
    if not word.endswith("s") or word.endswith(("ss", "us", "is", "'s")) or len(word) < 4:
        return word
    if word.endswith("ies"):
        return word.removesuffix("ies") + "y"
    if word.endswith(("sses", "shes", "ches", "xes", "zzes", "oes")):
        return word.removesuffix("es")
    return word.removesuffix("s")
