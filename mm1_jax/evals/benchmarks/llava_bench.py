"""LLaVA-Bench (in the wild): 60 questions about 24 pictures, graded beside GPT-4's answers."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mm1_jax.evals.benchmark import Benchmark, Verdict
from mm1_jax.evals.benchmarks.annotations import (
    HINT,
    AnnotationSource,
    Entry,
    ImageFile,
    question_record,
)
from mm1_jax.evals.benchmarks.families import annotations, judged_benchmark
from mm1_jax.evals.judge import Grades, Judge
from mm1_jax.evals.predictions.entries import by_key
from mm1_jax.evals.predictions.files import read_file
from mm1_jax.evals.scoring.judged import UNREADABLE_REVIEW, llava_bench_scores, review_grades

# Values of the official script, eval_gpt_review_bench.py.
_TEMPERATURE, _MAX_TOKENS = 0.2, 1024


def llava_bench() -> Benchmark.Config:
    """LLaVA-Bench (in the wild): 60 questions about 24 pictures, graded beside GPT-4's answers.

        llava_bench/questions.jsonl    question_id, image, text, category (conv, detail, complex)
        llava_bench/context.jsonl      image, caption: a description of the picture for the judge
        llava_bench/answers_gpt4.jsonl question_id, text (and answer_id): the reference
        llava_bench/rule.json          from LLaVA's repository (llava/eval/table): judge prompts
        llava_bench/images/

    The files are those of the Hugging Face hub (liuhaotian/llava-bench-in-the-wild). The rule is
    needed only with a judge (--judge_url).
    """
    source = annotations(read_llava_bench, "llava_bench", "all", "all")
    return judged_benchmark(
        "llava_bench", source, grade, headline="relative", predictions=json_lines
    )


def read_llava_bench(files: AnnotationSource, split: str) -> list[dict[str, Any]]:
    """Returns one record per question, with the fields that the judge needs."""
    path = files.file("questions.jsonl")
    contexts = by_key(files.entries(files.file("context.jsonl")), "image")
    references_path = files.file("answers_gpt4.jsonl")
    references = by_key(files.entries(references_path), "question_id")
    (folder,) = files.images("images")
    records = []
    for entry in files.entries(path):
        key, name = entry.key("question_id"), entry.text("image")
        for found, where, what in (
            (contexts, "context.jsonl", name),
            (references, references_path.name, key),
        ):
            if what not in found:
                raise ValueError(f"{entry.where}: {where} has no {what!r}. {HINT}")
        reference = references[key]
        record = question_record(
            key,
            [ImageFile(folder, name)],
            entry.text("text"),
            [reference.text("text")],
            category=entry.text("category"),
            context="\n".join(contexts[name].texts("caption")),
            reference_id=reference.values.get("answer_id", key),
        )
        records.append(record)
    return records


def json_lines(verdicts: Sequence[Verdict]) -> tuple[str, str]:
    """Returns JSON lines as LLaVA's `model_vqa` writes them."""
    lines = [json.dumps(_line(verdict), ensure_ascii=False) for verdict in verdicts]
    return ".jsonl", "\n".join(lines)


def _line(verdict: Verdict) -> dict[str, Any]:
    record = verdict.task.record
    key = record["id"]
    return {
        "question_id": int(key) if key.isdecimal() else key,
        "prompt": record["question"],
        "text": verdict.answer,
        "answer_id": f"mm1_jax_{key}",
        "model_id": "mm1_jax",
        "metadata": {},
    }


def grade(
    verdicts: Sequence[Verdict],
    judge: Judge,
    cfg: Benchmark.Config,
    file: Callable[..., Path],
    progress: Callable[[], object],
) -> Grades:
    """Has the judge review each answer.

    A review that does not begin with two grades counts as unreadable and is left out of the scores;
    the official script grades it -1 and -1.
    """
    path = file("rule.json", "table/rule.json")
    rules = read_file(path)
    reviews, grades = [], {}
    for number, verdict in enumerate(verdicts, start=1):
        category = f"llava_bench_{verdict.task.record['category']}"
        rule = rules.get(category) if isinstance(rules, dict) else None
        if not isinstance(rule, dict):
            raise ValueError(f"{path}: no rule {category!r}. {HINT}")
        entry = Entry(rule, f"{path}, {category}", HINT)
        asked = _question(verdict, entry.text("role"), entry.text("prompt"))
        messages = [{"role": "user", "content": asked}]
        if cfg.system_message:
            messages.insert(0, {"role": "system", "content": cfg.system_message})
        reply = judge.ask(messages, temperature=_TEMPERATURE, max_tokens=_MAX_TOKENS)
        progress()
        try:
            pair = review_grades(reply.text)
        except ValueError:
            pair = None
        if pair is not None:
            grades.setdefault(category, []).append(pair)
        result = _line(verdict)
        reviews.append(
            {
                "id": number,
                "question_id": result["question_id"],
                "answer1_id": verdict.task.record["reference_id"],
                "answer2_id": result["answer_id"],
                "category": category,
                "content": reply.text,
                "tuple": list(UNREADABLE_REVIEW if pair is None else pair),
            }
        )
    num_read = sum(map(len, grades.values()))
    metrics: dict[str, float] = {}
    if num_read:
        for category, scores in llava_bench_scores(grades).items():
            suffix = category.removeprefix("llava_bench_")
            suffix = "" if suffix == "all" else f"_{suffix}"
            metrics |= {f"{name}{suffix}": value for name, value in scores.items()}
    if num_read < len(verdicts):
        metrics["unreadable_reviews"] = float(len(verdicts) - num_read)
    lines = [json.dumps(review, ensure_ascii=False) for review in reviews]
    return Grades("review1.jsonl", "\n".join(lines) + "\n", metrics)


def _question(verdict: Verdict, role: str, prompt: str) -> str:
    """Returns the question to the judge: blocks in the order of the official script."""
    record = verdict.task.record
    first, second = f"{role} 1", f"{role} 2"
    blocks = [
        f"[Context]\n{record['context']}",
        f"[Question]\n{record['question']}",
        f"[{first}]\n{record['answer']}",
        f"[End of {first}]",
        f"[{second}]\n{verdict.answer}",
        f"[End of {second}]",
        f"[System]\n{prompt}",
    ]
    return "".join(f"{block}\n\n" for block in blocks)
