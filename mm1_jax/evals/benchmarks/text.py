"""Benchmarks without pictures, which the paper calls TextCore in its ablations.

Rows are of Parquet, JSON or JSON lines. Prompts and scores are those of EleutherAI's
lm-evaluation-harness, version 0.4.
"""

import re
from collections.abc import Sequence
from typing import Any

from mm1_jax.evals.asking import generate_answers
from mm1_jax.evals.benchmark import Benchmark
from mm1_jax.evals.benchmarks.annotations import HINT, Entry
from mm1_jax.evals.benchmarks.families import answer_predictions, text_benchmark
from mm1_jax.evals.benchmarks.rows import RowSource, label_of, option_record, some_text
from mm1_jax.evals.scoring.options import (
    last_word,
    one_greedy,
    one_of_aliases,
    option_accuracies,
    option_accuracy,
)

# ARC's publishers' names of the splits.
_ARC_SPLITS = {"train": "Train", "validation": "Dev", "test": "Test"}
_SCIQ_OPTIONS = ("distractor1", "distractor2", "distractor3", "correct_answer")
# Marks of WikiHow's pages, such as [title], [header], [step].
_MARK = re.compile(r"\[.*?\]")


def arc_easy() -> Benchmark.Config:
    """ARC, easy and challenge: questions of school exams, three to five options each.

        arc/ARC-Easy/test-*.parquet               as on the hub of Hugging Face (allenai/ai2_arc)
        arc/ARC-Easy/ARC-Easy-Test.jsonl          or as the publisher has it (ARC-V1-Feb2018)

    Columns: id, question, choices (text and label, lists), answerKey; of the publisher, question is
    an object of stem and choices. The other part is ARC-Challenge.
    """
    return text_benchmark("arc_easy", _arc("ARC-Easy"), option_accuracies)


def arc_challenge() -> Benchmark.Config:
    """The questions of ARC that retrieval and co-occurrence of words got wrong; files as above."""
    source = _arc("ARC-Challenge")
    return text_benchmark("arc_challenge", source, option_accuracies, headline="acc_norm")


def _arc(part: str) -> Any:
    return RowSource.default_config().set(
        folder="arc",
        part=part,
        query_split="test",
        support_split="train",
        patterns=(
            "{part}/{split}-*.parquet",
            "{part}/{part}-{publisher}.jsonl",
            "*/{part}/{part}-{publisher}.jsonl",
        ),
        publisher=_ARC_SPLITS,
        row=arc_row,
    )


def arc_row(entry: Entry, number: str) -> dict[str, Any]:
    """A question with its choices."""
    question = entry.values.get("question")
    if isinstance(question, dict):
        entry = Entry({**entry.values, **question, "question": None}, entry.where, HINT)
        text = some_text(entry, "stem")
        pairs = entry.values.get("choices")
    else:
        text, pairs = some_text(entry, "question"), _pairs(entry.values.get("choices"))
    if not isinstance(pairs, list) or len(pairs) < 2 or not all(map(_is_choice, pairs)):
        raise entry.error(("choices",), "two choices or more, each a text and a label", pairs)
    labels = [str(pair["label"]) for pair in pairs]
    label = label_of(entry, "answerKey", labels)
    options = [pair["text"] for pair in pairs]
    return option_record(entry.key("id"), f"Question: {text}\nAnswer:", options, label)


def _pairs(choices: Any) -> Any:
    """A list of objects, of an object of lists."""
    if not isinstance(choices, dict):
        return choices
    texts, labels = choices.get("text"), choices.get("label")
    if not isinstance(texts, list) or not isinstance(labels, list) or len(texts) != len(labels):
        return choices
    return [{"text": text, "label": label} for text, label in zip(texts, labels, strict=True)]


def _is_choice(pair: Any) -> bool:
    return isinstance(pair, dict) and all(isinstance(pair.get(x), str) for x in ("text", "label"))


def piqa() -> Benchmark.Config:
    """PIQA: which of two ways leads to a goal.

        piqa/plain_text/validation/*.parquet        as on the hub of Hugging Face (ybisk/piqa, which
                                                    converts it), or piqa/data/validation-*.parquet
        piqa/valid.jsonl piqa/valid-labels.lst      or as the publisher has it, labels line by line

    Columns: goal, sol1, sol2, label (0 or 1; -1 in the test split, which has none).
    """
    source = RowSource.default_config().set(
        folder="piqa",
        query_split="validation",
        support_split="train",
        patterns=(
            "plain_text/{split}/*.parquet",
            "data/{split}-*.parquet",
            "{split}-*.parquet",
            "{publisher}.jsonl",
        ),
        publisher={"validation": "valid", "test": "tests"},
        row=piqa_row,
    )
    return text_benchmark("piqa", source, option_accuracies)


def piqa_row(entry: Entry, number: str) -> dict[str, Any]:
    """A goal with two solutions."""
    options = [some_text(entry, "sol1"), some_text(entry, "sol2")]
    prompt = f"Question: {some_text(entry, 'goal')}\nAnswer:"
    return option_record(number, prompt, options, label_of(entry, "label", ("0", "1")))


def lambada() -> Benchmark.Config:
    """LAMBADA: the last word of a passage, which only all of it tells.

        lambada/data/lambada_test_en.jsonl        as on the hub of Hugging Face
                                                  (EleutherAI/lambada_openai), or lambada_test.jsonl
        lambada/plain_text/test-*.parquet         or the original tokenised text (cimec/lambada)

    Column: text. The former is OpenAI's version, which the harness calls lambada_openai and most
    published figures are of.
    """
    source = RowSource.default_config().set(
        folder="lambada",
        query_split="test",
        support_split="test",
        patterns=(
            "data/lambada_{split}_en.jsonl",
            "lambada_{split}_en.jsonl",
            "**/lambada_{split}.jsonl",
            "default/{split}-*.parquet",
            "data/{split}-*.parquet",
            "plain_text/{split}-*.parquet",
        ),
        row=lambada_row,
    )
    return text_benchmark("lambada", source, last_word, exemplar_split="test")


def lambada_row(entry: Entry, number: str) -> dict[str, Any]:
    """A passage, whose one option is its last word."""
    text = some_text(entry, "text")
    # A single space separates, as in the harness: text with others is used as it is.
    prompt, _, word = text.rpartition(" ")
    if not prompt.strip() or not word.strip():
        raise entry.error(("text",), "a passage that ends with a word after a space", text)
    return option_record(number, prompt, [word], 0)


def winogrande() -> Benchmark.Config:
    """WinoGrande: which of two names stands at the gap of a sentence.

        winogrande/winogrande_xl/validation-*.parquet    as on the hub of Hugging Face
        winogrande/dev.jsonl winogrande/train_xl.jsonl   or as the publisher has it (winogrande_1.1)

    Columns: sentence with `_`, option1, option2, answer ("1" or "2"; "" in the test split).

    Scoring is partial (Trinh and Le 2018): what is compared is how likely the rest of the sentence
    is after each option, not the option.
    """
    source = RowSource.default_config().set(
        folder="winogrande",
        size="xl",
        query_split="validation",
        support_split="train",
        patterns=(
            "winogrande_{size}/{split}-*.parquet",
            "{publisher}.jsonl",
            "*/{publisher}.jsonl",
        ),
        publisher={"validation": "dev", "train": "train_{size}"},
        row=winogrande_row,
    )
    return text_benchmark("winogrande", source, option_accuracy)


def winogrande_row(entry: Entry, number: str) -> dict[str, Any]:
    """A sentence up to its gap and each option; the `rest` follows."""
    sentence = some_text(entry, "sentence")
    start, gap, rest = sentence.partition("_")
    if not gap or not rest.strip():
        raise entry.error(("sentence",), "a sentence with a gap, _, and a rest", sentence)
    starts = [start + some_text(entry, f"option{i}") for i in (1, 2)]
    label = label_of(entry, "answer", ("1", "2"))
    record = option_record(number, starts[label or 0], starts, label)
    # The answer of an exemplar is the rest, after the right option.
    answer = "" if label is None else rest.strip()
    return record | {"answer": answer, "rest": rest.strip()}


def hellaswag() -> Benchmark.Config:
    """HellaSwag: which of four endings goes on with what happens.

        hellaswag/data/validation-*.parquet      as on the hub of Hugging Face (Rowan/hellaswag)
        hellaswag/hellaswag_val.jsonl            or as the publisher has it

    Columns: activity_label, ctx_a, ctx_b, endings (four), label (of the test split "", or missing).
    """
    source = RowSource.default_config().set(
        folder="hellaswag",
        query_split="validation",
        support_split="train",
        patterns=(
            "data/{split}-*.parquet",
            "hellaswag_{publisher}.jsonl",
            "data/hellaswag_{publisher}.jsonl",
        ),
        publisher={"validation": "val"},
        row=hellaswag_row,
    )
    return text_benchmark("hellaswag", source, option_accuracies, headline="acc_norm")


def hellaswag_row(entry: Entry, number: str) -> dict[str, Any]:
    """A beginning and four endings, in words without the marks of WikiHow."""
    # Both halves may be blank, but not missing.
    start, rest = entry.text("ctx_a"), entry.text("ctx_b")
    endings = entry.texts("endings", expected="four endings")
    if len(endings) != 4:
        raise entry.error(("endings",), "four endings", endings)
    label = label_of(entry, "label", ("0", "1", "2", "3"))
    activity = some_text(entry, "activity_label")
    prompt = plain_words(f"{activity}: {start} {rest.capitalize()}")
    return option_record(number, prompt, [plain_words(ending) for ending in endings], label)


def plain_words(text: str) -> str:
    """Without marks in brackets; a title begins a sentence. As the harness has it."""
    text = text.strip().replace(" [title]", ". ")
    return _MARK.sub("", text).replace("  ", " ")


def sciq() -> Benchmark.Config:
    """SciQ: questions of science exams after a text that may help, four options each.

        sciq/data/test-*.parquet      as on the hub of Hugging Face (allenai/sciq)
        sciq/test.json                or as the publisher has it: train.json, valid.json, test.json

    Columns: question, support (may be ""), correct_answer, distractor1, distractor2, distractor3.
    """
    source = RowSource.default_config().set(
        folder="sciq",
        query_split="test",
        support_split="train",
        patterns=("data/{split}-*.parquet", "{publisher}.json", "*/{publisher}.json"),
        publisher={"validation": "valid"},
        row=sciq_row,
    )
    return text_benchmark("sciq", source, option_accuracies)


def sciq_row(entry: Entry, number: str) -> dict[str, Any]:
    """A question; the right answer is the last option, as in the harness."""
    options = [some_text(entry, name) for name in _SCIQ_OPTIONS]
    support = entry.text("support").lstrip()
    prompt = f"{support}\nQuestion: {some_text(entry, 'question')}\nAnswer:"
    return option_record(number, prompt, options, len(options) - 1)


def triviaqa() -> Benchmark.Config:
    """TriviaQA: trivia with many spellings of each answer, without documents to look them up in.

        triviaqa/rc.nocontext/validation-*.parquet     as on the hub of Hugging Face
                                                       (mandarjoshi/trivia_qa)

    Columns: question, answer (an object; `aliases` are the spellings that are accepted). A question
    may occur more than once, for several documents, and is asked as often, as the harness asks it.

    An answer is generated, up to a line end, a full stop or a comma, and right where it is one of
    the aliases but for case, punctuation and space before it (`exact_match` of the harness's
    triviaqa).
    """
    source = RowSource.default_config().set(
        folder="triviaqa",
        part="rc.nocontext",  # Or "unfiltered.nocontext", "rc.wikipedia.nocontext", ..
        query_split="validation",
        support_split="train",
        patterns=("{part}/{split}-*.parquet", "{split}.jsonl"),
        row=triviaqa_row,
    )
    return text_benchmark(
        "triviaqa",
        source,
        one_of_aliases,
        asking=generate_answers,
        stop_strings=("\n", ".", ","),
        max_new_tokens=32,
        headline="exact_match",
        predictions=answer_predictions,
    )


def triviaqa_row(entry: Entry, number: str) -> dict[str, Any]:
    """A question; an exemplar's answer is the first alias."""
    answer = entry.get("answer", expected="an object with `aliases`")
    if not isinstance(answer, dict):
        raise entry.error(("answer",), "an object with `aliases`", answer)
    aliases = answer.get("aliases")
    # The answers of the test split are kept back.
    if not isinstance(aliases, list) or not all(isinstance(text, str) for text in aliases):
        raise entry.error(("answer",), "an object whose `aliases` are texts", answer)
    # The harness has a question mark behind those of the questions.
    question = f"Question: {some_text(entry, 'question')}?\nAnswer:"
    return {
        "id": number,
        "images": [],
        "question": question,
        "answer": aliases[0] if aliases else "",
        "answers": aliases,
    }


def webqs() -> Benchmark.Config:
    """WebQuestions: short questions that people put to a search engine.

        webqs/data/test-*.parquet     as on the hub of Hugging Face (stanfordnlp/web_questions)

    Columns: question, answers (a list of texts, all of them right).

    Nothing is generated: a task is right where one of its answers is what the model would say,
    token by token (`exact_match` of the harness's webqs).
    """
    source = RowSource.default_config().set(
        folder="webqs",
        query_split="test",
        support_split="train",
        patterns=("data/{split}-*.parquet", "{split}.jsonl"),
        row=webqs_row,
    )
    return text_benchmark("webqs", source, one_greedy, headline="exact_match")


def webqs_row(entry: Entry, number: str) -> dict[str, Any]:
    """A question; an exemplar's answer is the first in the order of the alphabet."""
    answers = [text for text in entry.texts("answers") if text.strip()]
    if not answers:
        raise entry.error(("answers",), "an answer or more", entry.values.get("answers"))
    prompt = f"Question: {some_text(entry, 'question')}\nAnswer:"
    options = without_longer(answers)
    return option_record(number, prompt, options, 0, answers=answers)


def without_longer(texts: Sequence[str]) -> list[str]:
    """In order of the alphabet, without those that begin with another: that one decides already."""
    kept: list[str] = []
    for text in sorted(texts):
        if not kept or not text.startswith(kept[-1]):
            kept.append(text)
    return kept
