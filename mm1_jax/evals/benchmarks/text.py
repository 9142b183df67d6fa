"""Benchmarks without pictures, called TextCore in the paper's ablations.

Their files are Parquet, JSON or JSON lines. Prompts and scores are those of EleutherAI's
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

# Names of the splits in ARC's original files.
_ARC_SPLITS = {"train": "Train", "validation": "Dev", "test": "Test"}
_SCIQ_OPTIONS = ("distractor1", "distractor2", "distractor3", "correct_answer")
# Marks in WikiHow's pages, such as [title], [header] and [step].
_MARK = re.compile(r"\[.*?\]")


def arc_easy() -> Benchmark.Config:
    """ARC, easy: questions of school exams with three to five options.

        arc/ARC-Easy/test-*.parquet               from the Hugging Face hub (allenai/ai2_arc)
        arc/ARC-Easy/ARC-Easy-Test.jsonl          or from the publisher (ARC-V1-Feb2018)

    Columns: id, question, choices (text and label, lists), answerKey. In the publisher's files,
    question is an object of stem and choices.
    """
    return text_benchmark("arc_easy", _arc("ARC-Easy"), option_accuracies)


def arc_challenge() -> Benchmark.Config:
    """ARC, challenge: the questions that retrieval and word co-occurrence answered wrongly.

    The files are those of arc_easy, with ARC-Challenge for ARC-Easy.
    """
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
    """Returns the record of a question with its choices."""
    question = entry.values.get("question")
    if isinstance(question, dict):
        entry = Entry({**entry.values, **question, "question": None}, entry.where, HINT)
        text = some_text(entry, "stem")
        pairs = entry.values.get("choices")
    else:
        text, pairs = some_text(entry, "question"), _pairs(entry.values.get("choices"))
    if not isinstance(pairs, list) or len(pairs) < 2 or not all(map(_is_choice, pairs)):
        raise entry.error(("choices",), "at least two choices with text and label", pairs)
    labels = [str(pair["label"]) for pair in pairs]
    label = label_of(entry, "answerKey", labels)
    options = [pair["text"] for pair in pairs]
    return option_record(entry.key("id"), f"Question: {text}\nAnswer:", options, label)


def _pairs(choices: Any) -> Any:
    """Converts an object of lists to a list of objects; returns anything else as it is."""
    if not isinstance(choices, dict):
        return choices
    texts, labels = choices.get("text"), choices.get("label")
    if not isinstance(texts, list) or not isinstance(labels, list) or len(texts) != len(labels):
        return choices
    return [{"text": text, "label": label} for text, label in zip(texts, labels, strict=True)]


def _is_choice(pair: Any) -> bool:
    return isinstance(pair, dict) and all(isinstance(pair.get(x), str) for x in ("text", "label"))


def piqa() -> Benchmark.Config:
    """PIQA: choose the one of two solutions that achieves a goal.

        piqa/plain_text/validation/*.parquet        from the Hugging Face hub (ybisk/piqa, converted
                                                    there), or piqa/data/validation-*.parquet
        piqa/valid.jsonl piqa/valid-labels.lst      or from the publisher, one label per line

    Columns: goal, sol1, sol2, label (0 or 1; -1 in the test split, which has no labels).
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
    """Returns the record of a goal with two solutions."""
    options = [some_text(entry, "sol1"), some_text(entry, "sol2")]
    prompt = f"Question: {some_text(entry, 'goal')}\nAnswer:"
    return option_record(number, prompt, options, label_of(entry, "label", ("0", "1")))


def lambada() -> Benchmark.Config:
    """LAMBADA: predict the last word of a passage, which requires all of its context.

        lambada/data/lambada_test_en.jsonl        from the Hugging Face hub
                                                  (EleutherAI/lambada_openai), or lambada_test.jsonl
        lambada/plain_text/test-*.parquet         or the original tokenized text (cimec/lambada)

    Column: text. The first is OpenAI's version (lambada_openai in the harness), which most
    published figures use.
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
    """Returns the record of a passage, whose only option is its last word."""
    text = some_text(entry, "text")
    # As in the harness, the last space separates, and other whitespace stays as it is.
    prompt, _, word = text.rpartition(" ")
    if not prompt.strip() or not word.strip():
        raise entry.error(("text",), "a passage that ends with a word after a space", text)
    return option_record(number, prompt, [word], 0)


def winogrande() -> Benchmark.Config:
    """WinoGrande: choose the one of two names that fills the gap in a sentence.

        winogrande/winogrande_xl/validation-*.parquet    from the Hugging Face hub
        winogrande/dev.jsonl winogrande/train_xl.jsonl   or from the publisher (winogrande_1.1)

    Columns: sentence with `_`, option1, option2, answer ("1" or "2"; "" in the test split).

    Scoring is partial (Trinh and Le 2018): it compares the likelihoods of the rest of the sentence
    after each option, not those of the options.
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
    """Returns the record of a sentence: its start with each option filled in, and its `rest`."""
    sentence = some_text(entry, "sentence")
    start, gap, rest = sentence.partition("_")
    if not gap or not rest.strip():
        raise entry.error(("sentence",), "a sentence with a gap, _, and a rest", sentence)
    starts = [start + some_text(entry, f"option{i}") for i in (1, 2)]
    label = label_of(entry, "answer", ("1", "2"))
    record = option_record(number, starts[label or 0], starts, label)
    # An exemplar shows the right option in its question, and the rest as its answer.
    answer = "" if label is None else rest.strip()
    return record | {"answer": answer, "rest": rest.strip()}


def hellaswag() -> Benchmark.Config:
    """HellaSwag: choose the one of four endings that continues a description.

        hellaswag/data/validation-*.parquet      from the Hugging Face hub (Rowan/hellaswag)
        hellaswag/hellaswag_val.jsonl            or from the publisher

    Columns: activity_label, ctx_a, ctx_b, endings (four), label ("" or missing in the test split).
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
    """Returns the record of a beginning and four endings, without WikiHow's marks."""
    # Both halves of the beginning may be blank, but not missing.
    start, rest = entry.text("ctx_a"), entry.text("ctx_b")
    endings = entry.texts("endings", expected="four endings")
    if len(endings) != 4:
        raise entry.error(("endings",), "four endings", endings)
    label = label_of(entry, "label", ("0", "1", "2", "3"))
    activity = some_text(entry, "activity_label")
    prompt = plain_words(f"{activity}: {start} {rest.capitalize()}")
    return option_record(number, prompt, [plain_words(ending) for ending in endings], label)


def plain_words(text: str) -> str:
    """Removes marks in brackets, as the harness does; [title] starts a sentence."""
    text = text.strip().replace(" [title]", ". ")
    return _MARK.sub("", text).replace("  ", " ")


def sciq() -> Benchmark.Config:
    """SciQ: questions of science exams with four options, after a supporting text.

        sciq/data/test-*.parquet      from the Hugging Face hub (allenai/sciq)
        sciq/test.json                or from the publisher: train.json, valid.json, test.json

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
    """Returns the record of a question. As in the harness, the last option is right."""
    options = [some_text(entry, name) for name in _SCIQ_OPTIONS]
    support = entry.text("support").lstrip()
    prompt = f"{support}\nQuestion: {some_text(entry, 'question')}\nAnswer:"
    return option_record(number, prompt, options, len(options) - 1)


def triviaqa() -> Benchmark.Config:
    """TriviaQA: trivia questions without documents, with many accepted spellings of each answer.

        triviaqa/rc.nocontext/validation-*.parquet     from the Hugging Face hub
                                                       (mandarjoshi/trivia_qa)

    Columns: question, answer (an object; `aliases` are the accepted spellings). As in the harness,
    a question that occurs several times, for several documents, is asked each time.

    An answer is generated up to a newline, a period or a comma. It is right if it equals an alias
    up to case, punctuation and leading whitespace (`exact_match` of the harness's triviaqa).
    """
    source = RowSource.default_config().set(
        folder="triviaqa",
        part="rc.nocontext",  # Or "unfiltered.nocontext", "rc.wikipedia.nocontext", etc.
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
    """Returns the record of a question; an exemplar's answer is the first alias."""
    answer = entry.get("answer", expected="an object with `aliases`")
    if not isinstance(answer, dict):
        raise entry.error(("answer",), "an object with `aliases`", answer)
    aliases = answer.get("aliases")
    # The test split has no aliases, as its answers are not published.
    if not isinstance(aliases, list) or not all(isinstance(text, str) for text in aliases):
        raise entry.error(("answer",), "an object whose `aliases` are texts", answer)
    # The harness adds a question mark even after one in the question.
    question = f"Question: {some_text(entry, 'question')}?\nAnswer:"
    return {
        "id": number,
        "images": [],
        "question": question,
        "answer": aliases[0] if aliases else "",
        "answers": aliases,
    }


def webqs() -> Benchmark.Config:
    """WebQuestions: short questions that people asked a search engine.

        webqs/data/test-*.parquet     from the Hugging Face hub (stanfordnlp/web_questions)

    Columns: question, answers (a list of texts, all of them right).

    Nothing is generated: a task is right if one of its answers is greedy, so that each token is
    the model's most likely one (`exact_match` of the harness's webqs).
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
    """Returns the record of a question; an exemplar's answer is the alphabetically first one."""
    answers = [text for text in entry.texts("answers") if text.strip()]
    if not answers:
        raise entry.error(("answers",), "at least one answer", entry.values.get("answers"))
    prompt = f"Question: {some_text(entry, 'question')}\nAnswer:"
    options = without_longer(answers)
    return option_record(number, prompt, options, 0, answers=answers)


def without_longer(texts: Sequence[str]) -> list[str]:
    """Sorts texts, and drops each that starts with another: a reply with it has that one, too."""
    kept: list[str] = []
    for text in sorted(texts):
        if not kept or not text.startswith(kept[-1]):
            kept.append(text)
    return kept
