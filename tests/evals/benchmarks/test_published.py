import json
import re
import shutil
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from mm1_jax.evals import asking
from mm1_jax.evals.answer_log import AnswerLog
from mm1_jax.evals.answers import TextAnswer
from mm1_jax.evals.benchmark import Benchmark
from mm1_jax.evals.benchmarks.registry import BENCHMARKS, CHAT, PRETRAINING
from mm1_jax.evals.evaluation import evaluate
from mm1_jax.evals.predictions.registry import SCORERS
from mm1_jax.evals.predictions.scorer import ScoringJob
from mm1_jax.models.mm1 import MM1

# Sizes of the benchmarks that conftest.py writes; NoCaps draws exemplars from its queries.
NUM_QUERIES = 4
NUM_OF_NOCAPS = 20


@pytest.fixture
def model() -> MM1:
    return object.__new__(MM1)


class Says:
    """Replaces `generate`: answers with `texts` in turn and records the batches."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.batches = []
        self.texts = iter(())

    def __call__(self, model, batch, options):
        self.batches.append(batch)
        rows = np.full((len(batch.tokens), options.max_new_tokens), self.tokenizer.pad)
        for row, segments in zip(rows, batch.segment_ids, strict=True):
            if segments.any():
                ids = [*self.tokenizer.encode(next(self.texts)), self.tokenizer.eos]
                assert len(ids) <= len(row)
                row[: len(ids)] = ids
        return rows


@pytest.fixture
def says(input, monkeypatch) -> Says:
    says = Says(input.tokenizer)
    monkeypatch.setattr(asking, "generate", says)
    return says


def build(name: str, folder: Path, input: Any, **fields: Any) -> Benchmark:
    sizes = {"batch_size": 3, "max_new_tokens": 80}
    cfg = BENCHMARKS[name]().set(**(sizes | fields))
    cfg.corpus.source.data_dir = str(folder)
    return cfg.instantiate(input=input)


def answered(benchmark, says, model, text: Callable[[Any], str], shots: int = 0):
    says.texts = iter([text(task) for task in benchmark.tasks(shots)])
    return benchmark.run_shots(model, shots)


def right_answer(task) -> str:
    record = task.record
    return record["captions"][0] if "captions" in record else record["answer"]


def shown(image, input) -> int:
    return int(input.image_transform(image)[0, 0, 0])


@pytest.mark.parametrize("name", [*PRETRAINING])
@pytest.mark.parametrize("shots", [0, 4, 16])
def test_k_shots_show_k_pictures_then_the_query_which_is_not_an_exemplar(
    name, shots, benchmarks_dir, input, says, model
):
    benchmark = build(name, benchmarks_dir, input)
    answered(benchmark, says, model, right_answer, shots)
    tasks = benchmark.tasks(shots)
    rows = [
        [int(batch.images[slot][0, 0, 0]) for slot in slots if slot >= 0]
        for batch in says.batches
        for slots, segments in zip(batch.image_index, batch.segment_ids, strict=True)
        if segments.any()
    ]
    assert len(rows) == len(tasks) == (NUM_OF_NOCAPS if name == "nocaps" else NUM_QUERIES)
    for task, levels in zip(tasks, rows, strict=True):
        documents = [*task.exemplars, task.document]
        assert levels == [shown(document.images[0], input) for document in documents]
        assert len(levels) == shots + 1 == len(set(levels))
    # Training has 4 pictures a row; 16 exemplars and the query are 17.
    assert input.config.max_images < 17


@pytest.mark.parametrize("name", [*PRETRAINING])
def test_prompts_are_a_function_of_the_seed(name, benchmarks_dir, input):
    def prompts(**fields: Any):
        tasks = build(name, benchmarks_dir, input, **fields).tasks(4)
        return [[shown(image, input) for image in task.prompt.images] for task in tasks]

    assert prompts() == prompts()
    assert prompts() != prompts(seed=1)


def test_prompts_have_the_words_of_the_paper(benchmarks_dir, input):
    def texts(name: str) -> list[str]:
        prompt = build(name, benchmarks_dir, input).tasks(1)[0].prompt
        return [part.text for part in prompt.segments if hasattr(part, "text")]

    exemplar, query = texts("coco")
    assert exemplar.startswith("A photo of a dog of number ") and exemplar.endswith(" on grass\n")
    assert query == "A photo of"
    exemplar, query = texts("vqav2")
    assert exemplar.startswith("Question: what is it? Short answer: thing")
    assert exemplar.endswith("\n") and query == "Question: what is it? Short answer:"


def test_chat_prompts_have_the_words_of_training(benchmarks_dir, input):
    (user, *options, instruction), assistant = (
        text.split("\n")
        for text in (
            part.text
            for part in build("scienceqa", benchmarks_dir, input).tasks(0)[0].prompt.segments[1:]
        )
    )
    assert user == "USER: Look." and options == ["Which one?", "A. cat", "B. dog"]
    assert instruction == "Answer with the option's letter from the given choices directly."
    assert assistant == ["ASSISTANT:"]


@pytest.mark.parametrize("name", [*PRETRAINING, *CHAT, "vqav2_chat", "textvqa_chat"])
def test_right_answers_score_fully_and_others_zero(name, benchmarks_dir, input, says, model):
    benchmark = build(name, benchmarks_dir, input)
    headline = benchmark.config.headline
    full = {"mme": 2000.0, "mmmu": 1.0, "pope": 1.0}.get(name, 100.0)
    metrics = answered(benchmark, says, model, right_answer).metrics
    if name in ("coco", "nocaps", "textcaps"):
        # The answer is one of several different references, so no score is full.
        assert metrics[headline] > 1 and metrics["ROUGE_L"] > 0.8
    elif name == "okvqa":
        # Seven of ten people agree, and plurals count as their stems.
        assert metrics[headline] == full
    else:
        assert metrics[headline] == pytest.approx(full)
    wrong = answered(benchmark, says, model, lambda task: "zzz").metrics
    # POPE reads any reply without "no" as yes; MMMU picks a random option if a reply names none.
    if name not in ("pope", "mmmu"):
        # MathVista picks the choice with the least edit distance, which is sometimes right.
        limit = 60.0 if name == "mathvista" else 0.0
        assert wrong[headline] <= limit


@pytest.mark.parametrize("name", ["coco", "vqav2", "vizwiz", "gqa", "mmbench", "mme", "mmmu"])
def test_prediction_files_alone_have_the_same_scores(
    name, benchmarks_dir, input, says, model, tmp_path
):
    """Benchmarks and prediction files share a scoring function, verified against official code."""
    benchmark = build(name, benchmarks_dir, input)
    texts = iter([True, False, True, True] * 20)
    judgement = answered(
        benchmark, says, model, lambda task: right_answer(task) if next(texts) else "no dog"
    )
    folder = benchmarks_dir / name
    annotations = {
        "coco": tmp_path / "captions.json",
        "vqav2": folder / "v2_mscoco_val2014_annotations.json",
        "vizwiz": folder / "Annotations" / "val.json",
        "gqa": folder / "testdev_balanced_questions.json",
    }.get(name)
    if name == "coco":
        # The layout of COCO.
        captions = [
            {"image_id": int(verdict.task.key), "caption": caption}
            for verdict in judgement.verdicts
            for caption in verdict.task.record["captions"]
        ]
        annotations.write_text(json.dumps({"annotations": captions}))
    _, text = benchmark.config.predictions(judgement.verdicts)
    results = json.loads(text)
    if name == "gqa":
        results = [{"question_id": r["questionId"], "answer": r["prediction"]} for r in results]
        questions = json.loads(annotations.read_text())
        annotations = tmp_path / "gqa.json"
        annotations.write_text(
            json.dumps([{"question_id": key} | value for key, value in questions.items()])
        )
    file = tmp_path / "results.json"
    file.write_text(json.dumps(results))
    scores = SCORERS[name].score([file], ScoringJob(annotations))
    headline = benchmark.config.headline
    own = scores["Perception"]["score"] if name == "mme" else scores["results"][headline]
    assert judgement.metrics[headline] == pytest.approx(own)
    if name != "mme":
        assert 0 < own < 100


def test_circular_accuracy_requires_every_round(benchmarks_dir, input, says, model):
    benchmark = build("mmbench", benchmarks_dir, input)
    judgement = answered(
        benchmark,
        says,
        model,
        # Always the letter that is right in the first round.
        lambda task: "B",
    )
    assert judgement.metrics["vanilla_acc"] == 100.0
    assert judgement.metrics["circular_acc"] == 0.0


def test_questions_about_videos_are_counted(benchmarks_dir, input, says, model):
    metrics = answered(build("seed", benchmarks_dir, input), says, model, right_answer).metrics
    assert metrics["videos_left_out"] == 1.0 and metrics["n"] == NUM_QUERIES


def test_a_question_that_occurs_twice_in_seeds_official_file_is_asked_twice(
    benchmarks_dir, input, says, model, tmp_path
):
    shutil.copytree(benchmarks_dir / "seed", tmp_path / "seed")
    path = tmp_path / "seed" / "SEED-Bench.json"
    content = json.loads(path.read_text())
    again = dict(content["questions"][0], question="Another one?")
    path.write_text(json.dumps({"questions": [*content["questions"], again]}))
    benchmark = build("seed", tmp_path, input)
    log = AnswerLog(tmp_path / "log.jsonl", {})
    says.texts = iter([right_answer(task) for task in benchmark.tasks(0)])
    judgement = benchmark.run_shots(model, 0, log=log)
    assert judgement.metrics["n"] == NUM_QUERIES + 1 == len(log)
    # A second run asks nothing; the predictions contain the official id twice.
    says.texts = iter(())
    log = AnswerLog(tmp_path / "log.jsonl", {})
    assert benchmark.run_shots(model, 0, log=log).metrics == judgement.metrics
    results = tmp_path / "results.json"
    results.write_text(benchmark.config.predictions(judgement.verdicts)[1])
    ids = [str(row["question_id"]) for row in json.loads(results.read_text())]
    assert ids.count(str(again["question_id"])) == 2
    content["questions"] = [q for q in content["questions"] if q["question_type_id"] < 10]
    path.write_text(json.dumps({"questions": [*content["questions"], again]}))
    scores = SCORERS["seed"].score([results], ScoringJob(path))["results"]
    assert scores["n"] == NUM_QUERIES + 1 and scores["image_acc"] == 100


def test_a_lone_surrogate_in_a_question_is_written_escaped(
    benchmarks_dir, input, says, model, tmp_path
):
    shutil.copytree(benchmarks_dir / "vqav2", tmp_path / "vqav2")
    path = tmp_path / "vqav2" / "v2_OpenEnded_mscoco_val2014_questions.json"
    edit(path.name, lambda c: c["questions"][0].update(question="caf\u00e9 \ud83d?"))(path.parent)
    benchmark = build("vqav2", tmp_path, input)
    texts = {task.key: right_answer(task) for task in benchmark.tasks(0)}
    says.texts = iter(texts[task.key] for task in benchmark.tasks(0))
    scores = evaluate(
        benchmark, model, 0, folder=tmp_path / "out", identity={}, make_bar=lambda *_: NoBar()
    )
    assert scores.metrics["acc_processed"] == 100
    lines = (tmp_path / "out" / "vqav2" / "0_shot.jsonl").read_bytes().decode().splitlines()
    (prompt,) = [json.loads(x)["prompt"] for x in lines if "caf\u00e9" in x and r"\ud83d" in x]
    assert "caf\u00e9 \ud83d?" in prompt
    page = (tmp_path / "out" / "vqav2" / "0_shot_cases.html").read_bytes().decode()
    assert r"caf\u00e9 \ud83d".replace(r"\u00e9", "\u00e9") in page


class NoBar:
    def update(self): ...

    def close(self): ...


def test_pictures_of_mmmu_go_to_their_first_mention_in_the_text(benchmarks_dir, input):
    task = build("mmmu", benchmarks_dir, input).tasks(0)[0]
    texts = [getattr(part, "text", None) for part in task.document.segments]
    assert texts[0] == "USER: See" and texts[1] is None
    assert "B. image 1 again" in texts[2] and len(task.document.images) == 1


def test_a_split_without_references_reports_only_answers(
    benchmarks_dir, input, says, model, tmp_path
):
    shutil.copytree(benchmarks_dir / "vqav2", tmp_path / "vqav2")
    questions = tmp_path / "vqav2" / "v2_OpenEnded_mscoco_val2014_questions.json"
    questions.rename(questions.with_name("v2_OpenEnded_mscoco_test-dev2015_questions.json"))
    for path in (tmp_path / "vqav2" / "val2014").iterdir():
        target = tmp_path / "vqav2" / "test2015" / path.name.replace("val2014", "test2015")
        target.parent.mkdir(exist_ok=True)
        path.rename(target)
    cfg = BENCHMARKS["vqav2"]()
    cfg.corpus.source.set(data_dir=str(tmp_path), query_split="test-dev2015")
    benchmark = cfg.instantiate(input=input)
    judgement = answered(benchmark, says, model, lambda task: "red")
    assert judgement.metrics == {"n": 4.0, "without_reference": 4.0}
    assert [verdict.correct for verdict in judgement.verdicts] == [None] * 4
    _, text = benchmark.config.predictions(judgement.verdicts)
    assert json.loads(text)[0] == {"question_id": 100000, "answer": "red"}
    assert benchmark.intervals(judgement) == {}


def test_captions_of_a_split_without_references_are_not_exemplars(
    benchmarks_dir, input, says, model, tmp_path
):
    shutil.copytree(benchmarks_dir / "textcaps", tmp_path / "textcaps")
    content = json.loads((tmp_path / "textcaps" / "TextCaps_0.1_val.json").read_text())
    for entry in content["data"]:
        entry.pop("caption_str")
    (tmp_path / "textcaps" / "TextCaps_0.1_test.json").write_text(json.dumps(content))
    (tmp_path / "textcaps" / "train_images").rename(tmp_path / "textcaps" / "test_images")
    cfg = BENCHMARKS["textcaps"]()
    cfg.corpus.source.set(data_dir=str(tmp_path), query_split="test", support_split="test")
    benchmark = cfg.set(shots=(0, 1)).instantiate(input=input)
    metrics = answered(benchmark, says, model, lambda task: "a sign").metrics
    assert metrics == {"n": 4.0, "without_reference": 4.0}
    with pytest.raises(ValueError, match="an exemplar of task .* has no answer"):
        benchmark.run_shots(model, 1)


def test_a_stopped_evaluation_resumes_with_unanswered_tasks(
    benchmarks_dir, input, says, model, tmp_path
):
    benchmark = build("vqav2", benchmarks_dir, input, batch_size=1)
    texts = [right_answer(task) for task in benchmark.tasks(0)]
    whole = answered(benchmark, says, model, right_answer).metrics
    path, header = tmp_path / "0_shot.jsonl", {"step": 7}
    # The fourth batch fails while the third is pending; a crash also leaves half a line.
    says.texts = iter(texts[:3])
    with pytest.raises(RuntimeError, match="StopIteration"):
        benchmark.run_shots(model, 0, log=AnswerLog(path, header))
    kept = path.read_text()
    path.write_text(kept + '{"key": "10')
    log = AnswerLog(path, header)
    assert len(log) == 2
    says.batches.clear()
    says.texts = iter(texts[2:])
    assert benchmark.run_shots(model, 0, log=log).metrics == whole
    assert len(says.batches) == 2
    assert path.read_text().startswith(kept) and len(path.read_text().splitlines()) == 5
    with pytest.raises(ValueError, match="answers are of another model or protocol"):
        AnswerLog(path, {"step": 8})


def test_answer_logs_of_earlier_code_are_resumed(benchmarks_dir, input, says, model, tmp_path):
    """The header of such a log has former class names; only differences in meaning count."""
    benchmark = build("vqav2", benchmarks_dir, input, batch_size=1)

    def asked() -> Any:
        return evaluate(
            benchmark, model, 0, folder=tmp_path, identity={}, make_bar=lambda *_: NoBar()
        )

    says.texts = iter([right_answer(task) for task in benchmark.tasks(0)])
    expected, path = asked(), tmp_path / "vqav2" / "0_shot.jsonl"
    header, *lines = path.read_text().splitlines(keepends=True)
    for name, former in (
        ("benchmark.Benchmark", "benchmarks.vqav2.VqaV2"),
        ("benchmarks.vqav2.CocoQuestions", "benchmarks.vqav2.CocoQuestionsSource"),
    ):
        assert f"'mm1_jax.evals.{name}'" in header
        header = header.replace(f"'mm1_jax.evals.{name}'", f"'mm1_jax.evals.{former}'")
    path.write_text("".join([header, *lines[:2]]))
    says.texts = iter([right_answer(task) for task in benchmark.tasks(0)][2:])
    assert asked() == expected
    assert path.read_text() == "".join([header, *lines])
    path.write_text("".join([header.replace("'val2014'", "'val2015'"), *lines[:2]]))
    with pytest.raises(ValueError, match="answers are of another model or protocol"):
        asked()


def test_answer_logs_with_other_exemplars_are_rejected_and_those_of_earlier_code_accepted(
    benchmarks_dir, input, says, model, tmp_path
):
    def asked(exemplars_of: Any) -> Any:
        benchmark = build("vqav2", benchmarks_dir, input, exemplars_of=exemplars_of)
        says.texts = iter([right_answer(task) for task in benchmark.tasks(0)])
        return evaluate(
            benchmark, model, 0, folder=tmp_path, identity={}, make_bar=lambda *_: NoBar()
        )

    expected, path = asked(no_exemplars), tmp_path / "vqav2" / "0_shot.jsonl"
    with pytest.raises(ValueError, match="answers are of another model or protocol"):
        asked(None)
    header, *lines = path.read_text().splitlines(keepends=True)
    former = {name: x for name, x in json.loads(header).items() if name != "asked_with"}
    path.write_text("".join([json.dumps(former) + "\n", *lines]))
    assert asked(None) == expected
    path.write_text("".join([json.dumps(former | {"shots": 4}) + "\n", *lines]))
    with pytest.raises(ValueError, match="answers are of another model or protocol"):
        asked(None)
    path.write_text("".join(["[]\n", *lines]))
    with pytest.raises(ValueError, match="answers are of another model or protocol"):
        asked(None)


def no_exemplars(corpus: Any, index: int, shots: int) -> list[Any]:
    """Chooses no exemplars."""
    return []


def test_a_log_with_a_damaged_line_names_it(tmp_path):
    path = tmp_path / "log.jsonl"
    AnswerLog(path, {}).add("a", TextAnswer("x"))
    path.write_text(path.read_text() + '{"text": "no key"}\n')
    with pytest.raises(ValueError, match="log.jsonl, line 3: not an answer"):
        AnswerLog(path, {})


def test_a_log_written_by_another_process_is_read_and_not_changed(tmp_path):
    path = tmp_path / "out" / "log.jsonl"
    with pytest.raises(ValueError, match="log.jsonl: missing; all processes must see"):
        AnswerLog(path, {}, read_only=True)
    assert not path.parent.exists()
    AnswerLog(path, {}).add("a", TextAnswer("x"))
    path.write_text(path.read_text() + '{"key": "b", "te')
    before = path.read_bytes()
    log = AnswerLog(path, {}, read_only=True)
    assert log.get("a") == TextAnswer("x") and log.get("b") is None
    log.add("b", TextAnswer("y"))
    assert log.get("b") == TextAnswer("y") and path.read_bytes() == before


def edit(path: str, change: Callable[[Any], Any]) -> Callable[[Path], None]:
    """Returns a function that changes the content of a JSON file."""

    def damage(folder: Path) -> None:
        content = json.loads((folder / path).read_text())
        change(content)
        (folder / path).write_text(json.dumps(content))

    return damage


def text(path: str, old: str, new: str) -> Callable[[Path], None]:
    """Returns a function that replaces the first `old` in a text file."""

    def damage(folder: Path) -> None:
        content = (folder / path).read_text()
        assert old in content
        (folder / path).write_text(content.replace(old, new, 1))

    return damage


DAMAGE = [
    ("coco", edit("dataset_coco.json", lambda c: c["images"][20].pop("cocoid") and
                  c["images"][20].pop("imgid")), "record 21.*'cocoid' or 'imgid'"),
    ("coco", edit("dataset_coco.json", lambda c: c["images"][20].update(sentences=[])),
     "record 21.*'sentences'"),
    ("nocaps", edit("nocaps_val_4500_captions.json", lambda c: c["annotations"][1].update(
        image_id=99)), "annotations, record 2.*no image '99'"),
    ("nocaps", edit("nocaps_val_4500_captions.json", lambda c: c.update(
        annotations=c["annotations"][2:])), "images, record 1.*no caption"),
    ("textcaps", edit("TextCaps_0.1_val.json", lambda c: c["data"][1].pop("caption_str")),
     "data, record 2.*'caption_str'"),
    ("vqav2", edit("v2_mscoco_val2014_annotations.json", lambda c: c["annotations"].pop()),
     "annotations of 3 questions, but there are 4"),
    ("vqav2", edit("v2_mscoco_val2014_annotations.json", lambda c: c["annotations"][2].update(
        answers=[{"answer": 3}])), "record 3.*'answers'"),
    ("vqav2", edit("v2_OpenEnded_mscoco_val2014_questions.json", lambda c: c["questions"][
        1].update(question_id=100000)), "'102000'|no annotation|more than once"),
    ("textvqa", edit("TextVQA_0.5.1_val.json", lambda c: c["data"][0].pop("answers")),
     "data, record 1.*'answers'"),
    ("vizwiz", edit("Annotations/val.json", lambda c: c[3].update(question=None)),
     "record 4.*'question'"),
    ("gqa", edit("testdev_balanced_questions.json", lambda c: c["200100"].pop("imageId")),
     "record 1.*'imageId'"),
    ("okvqa", text("mscoco_val2014_annotations.json", '"annotations"', '"annotation"'),
     "a list 'annotations'"),
    ("scienceqa", edit("problems.json", lambda c: c["100"].update(answer=2)),
     "the number of one of"),
    ("mathvista", edit("testmini.json", lambda c: c["0"].update(precision="x")), "'precision'"),
    ("mme", text("existence/questions_answers_YN/0.txt", "\tYes", " Yes"), "0.txt, line 1.*a tab"),
    ("mme", text("existence/questions_answers_YN/0.txt", "\n", " "), "has 1 questions"),
    ("mmbench", text("mmbench_dev_20230712.tsv", "\tB\tidentity", "\tE\tidentity"), "'answer'"),
    ("seed", edit("SEED-Bench.json", lambda c: c["questions"][0].update(answer="E")), "'answer'"),
    ("pope", text("coco_pope_popular.json", '"yes"', '"maybe"'), "record 1.*, field 'label'"),
    ("pope", text("coco_pope_popular.json", '"label"', "label"), "line 1: not JSON"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "damage", "message"), DAMAGE)
def test_an_entry_that_deviates_from_the_documentation_is_named(
    name, damage, message, benchmarks_dir, input, tmp_path
):
    # Pictures are not read yet, so they need not be there.
    ignore = shutil.ignore_patterns("*.jpg", "*.png")
    shutil.copytree(benchmarks_dir / name, tmp_path / name, ignore=ignore)
    build(name, tmp_path, input)
    damage(tmp_path / name)
    with pytest.raises(ValueError, match=message):
        build(name, tmp_path, input)


@pytest.mark.parametrize("name", [*PRETRAINING, "scienceqa", "mathvista", "mme", "seed", "pope"])
def test_missing_pictures_are_an_error_before_the_model_is_asked(
    name, benchmarks_dir, input, says, model, tmp_path
):
    ignore = shutil.ignore_patterns("*.jpg", "*.png", "?_?")
    shutil.copytree(benchmarks_dir / name, tmp_path / name, ignore=ignore)
    benchmark = build(name, tmp_path, input)
    with pytest.raises(ValueError, match=rf"{name}: \d+ pictures are missing, the first "):
        benchmark.run_shots(model, 0)
    assert not says.batches
    benchmark = build(name, tmp_path, input, allow_missing_images=True)
    metrics = answered(benchmark, says, model, right_answer).metrics
    assert metrics["undecodable_images"] == metrics["n"]


def test_a_damaged_picture_is_counted(benchmarks_dir, input, says, model, tmp_path):
    shutil.copytree(benchmarks_dir / "mmbench", tmp_path / "mmbench")
    path = tmp_path / "mmbench" / "mmbench_dev_20230712.tsv"
    path.write_text(path.read_text().replace("iVBOR", "iVB!R", 1))
    benchmark = build("mmbench", tmp_path, input)
    metrics = answered(benchmark, says, model, right_answer).metrics
    assert metrics["undecodable_images"] == 1.0


@pytest.mark.parametrize("name", [*PRETRAINING, *CHAT])
def test_a_missing_folder_or_file_is_named(name, input, tmp_path):
    with pytest.raises(ValueError, match=f"{name}: no such folder.*--benchmarks_dir"):
        build(name, tmp_path, input)
    (tmp_path / name).mkdir()
    with pytest.raises(ValueError, match=rf"{name}.*(no such file|no folder of a subtask)"):
        build(name, tmp_path, input)


def test_ok_vqa_accepts_a_plural_for_its_stem(benchmarks_dir, input, says, model):
    benchmark = build("okvqa", benchmarks_dir, input)
    metrics = answered(benchmark, says, model, right_answer).metrics
    assert right_answer(benchmark.tasks(0)[0]) == "thing100s"
    assert metrics["acc_stemmed"] == 100.0 and metrics["acc_processed"] == 0.0


@pytest.mark.parametrize("name", [*PRETRAINING, *CHAT, "vqav2_chat", "textvqa_chat"])
def test_the_best_and_the_worst_answers_are_distinguished(name, benchmarks_dir, input, says, model):
    benchmark = build(name, benchmarks_dir, input)
    tasks = list(benchmark.tasks(0))
    # In MMBench, all rounds of a question count as right or wrong together.
    numbers = [int(task.key) if name == "mmbench" else i for i, task in enumerate(tasks)]
    texts = {
        task.key: right_answer(task) if number % 2 else "no" if name == "pope" else ""
        for number, task in zip(numbers, tasks, strict=True)
    }
    judgement = answered(benchmark, says, model, lambda task: texts[task.key])
    quality = benchmark.quality(judgement)
    assert quality.shape == (len(tasks),)
    best, worst = benchmark.cases(judgement, 1)
    assert best[0].quality > worst[0].quality
    assert best[0].answer and best[0].image is not None
    assert best[0].references and best[0].prompt


def test_the_benchmark_in_the_documentation_runs(input, says, model, tmp_path):
    guide = (Path(__file__).parents[3] / "docs" / "evaluate.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", guide, re.DOTALL)
    module = types.ModuleType("counts")
    exec(code, vars(module))
    folder = tmp_path / "counts"
    (folder / "images").mkdir(parents=True)
    for split, number in (("train", 6), ("val", 3)):
        rows = [
            {"id": i, "image": f"{i}.png", "question": "How many?", "count": i + 2}
            for i in range(number)
        ]
        (folder / f"{split}.json").write_text(json.dumps(rows))
    for i in range(6):
        PIL.Image.fromarray(np.full((4, 4, 3), i, np.uint8)).save(folder / "images" / f"{i}.png")
    cfg = module.counts().set(batch_size=2, shots=(0, 2))
    cfg.corpus.source.data_dir = str(tmp_path)
    benchmark = cfg.instantiate(input=input)
    texts = iter(("2", "4", "many"))
    metrics = answered(benchmark, says, model, lambda task: next(texts), shots=2).metrics
    assert metrics == {"n": 3, "acc": pytest.approx(100 / 3), "acc_near": pytest.approx(200 / 3)}
