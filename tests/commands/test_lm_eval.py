"""lm-evaluation-harness evaluates a run's model on tasks and data on disk."""

import importlib.util
import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mm1_jax.batch import Document, Text
from mm1_jax.commands import evaluate
from mm1_jax.data.chat_formats.mm1 import MM1ChatFormat
from mm1_jax.data.corpora.conversations import conversation_document
from mm1_jax.data.rows import RowShape, assemble
from mm1_jax.decoding.generate import generate
from mm1_jax.decoding.options import DecodingOptions
from mm1_jax.decoding.sampling import Sampling
from mm1_jax.evals.evaluator import PromptInput
from mm1_jax.evals.likelihood import LikelihoodRequest, LikelihoodScorer

if importlib.util.find_spec("lm_eval") is None:
    pytest.skip("lm_eval is not installed", allow_module_level=True)

pytestmark = [
    # The harness raises many warnings of its own.
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

ROW = RowShape(64, 1, 8)
OPTIONS = ["iron", "wood and more", "ice", "salt"]
CONTEXTS = [f"Jo had {i} hats and lost one. Jo sought the" for i in range(8)]
PAGES = ["a red circle is left of the blue square", "one two three. " * 30, ""]


def text(words: str) -> Document:
    return Document((Text(words, scored=False),))


@pytest.fixture(scope="module")
def scorer(run):
    folder, models, cfg = run
    scorer = LikelihoodScorer(PromptInput.of(cfg.input).tokenizer, image_size=8, batch_size=3)
    return lambda requests: scorer(models[7], requests)


def answer(run, context: str, **options: Any) -> str:
    """Returns the text that the model generates without the harness."""
    _, models, cfg = run
    input = PromptInput.of(cfg.input)
    batch = assemble([input.example_builder.prompt(text(context))], lambda image: None, ROW)
    tokenizer = input.tokenizer
    tokens = generate(models[7], batch, DecodingOptions.of(tokenizer, **options))
    return tokenizer.decode(np.asarray(tokens)[0].tolist())


def stop_string(run) -> str:
    """Returns a letter inside of the model's answer."""
    return answer(run, CONTEXTS[0], max_new_tokens=4).strip()[1]


@pytest.fixture(scope="module")
def benchmarks(run, scorer, tmp_path_factory) -> Path:
    """Questions of ARC and passages of LAMBADA, some of which end with the model's own word."""
    folder = tmp_path_factory.mktemp("benchmarks")
    rows = [
        {"id": f"{i}", "question": f"What melts, {i}?", "answerKey": "ABCD"[i % 4]}
        | {"choices": {"text": OPTIONS, "label": list("ABCD")}}
        for i in range(12)
    ]
    # A random model rarely continues with a word.
    lasts = ["red", "two", "eight", "is", "a", "of", "what", "how", "iron", "ice", "yes", "blue"]
    asked = [f"Jo sought the {last}" for last in lasts]
    said = [
        LikelihoodRequest(text(c), f" {answer(run, c, max_new_tokens=1).strip() or '.'}")
        for c in asked
    ]
    is_word = [
        one.is_greedy and " " not in r.continuation[1:]
        for r, one in zip(said, scorer(said), strict=True)
    ]
    passages = [
        {"text": context + (request.continuation if i % 3 else " zebra")}
        for i, (context, request, known) in enumerate(zip(asked, said, is_word, strict=True))
        if known
    ]
    passages += [{"text": f"{context} zebra"} for context in CONTEXTS[:3]]
    for name, lines in (
        ("arc/ARC-Easy/test-00000.parquet", rows),
        ("lambada/data/lambada_test_en.jsonl", passages),
        ("pages.jsonl", [{"text": page} for page in PAGES if page]),
        ("questions.jsonl", [{"question": context, "answer": "hat"} for context in CONTEXTS]),
    ):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".parquet":
            pq.write_table(pa.Table.from_pylist(lines), path)
        else:
            path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture(scope="module")
def tasks(run, benchmarks, tmp_path_factory) -> Path:
    """Tasks of the harness on these files, and one task of each other kind."""
    import lm_eval.tasks

    root, folder = Path(lm_eval.tasks.__file__).parent, tmp_path_factory.mktemp("tasks")
    until = [stop_string(run), "."]

    def data(name: str) -> dict[str, Any]:
        options = {"data_files": {"test": str(benchmarks / name)}, "cache_dir": str(folder)}
        kind = "parquet" if name.endswith("parquet") else "json"
        splits = {"test_split": "test", "training_split": None, "validation_split": None}
        return {"dataset_path": kind, "dataset_name": None, "dataset_kwargs": options} | splits

    own = {
        "arc_here": {"include": str(root / "arc/arc_easy.yaml")}
        | data("arc/ARC-Easy/test-00000.parquet"),
        "lambada_here": {"include": str(root / "lambada/lambada_openai.yaml")}
        | data("lambada/data/lambada_test_en.jsonl"),
        "pages_here": {"output_type": "loglikelihood_rolling", "doc_to_text": ""}
        | {"doc_to_target": "{{text}}", **data("pages.jsonl")}
        | {"metric_list": [{"metric": "word_perplexity"}, {"metric": "byte_perplexity"}]},
        "questions_here": {"output_type": "generate_until", "doc_to_text": "{{question}}"}
        | {"doc_to_target": "{{answer}}", **data("questions.jsonl")}
        | {"generation_kwargs": {"until": until, "max_gen_toks": 4, "do_sample": False}}
        | {"metric_list": [{"metric": "exact_match"}]},
    }
    for name, config in own.items():
        (folder / f"{name}.yaml").write_text(json.dumps({**config, "task": name}))
    return folder


def evaluated(folder: Path, tasks: Path, name: str, **options: Any) -> dict[str, Any]:
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    import mm1_jax.evals.adapters.lm_eval  # noqa: F401

    return simple_evaluate(
        model="mm1_jax",
        model_args=f"checkpoint={folder}",
        tasks=[name],
        batch_size=2,
        task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
        bootstrap_iters=0,
        log_samples=True,
        **options,
    )


def model(run, **options: Any) -> Any:
    from mm1_jax.evals.adapters.lm_eval import MM1ForLmEval

    return MM1ForLmEval.create_from_arg_obj({"checkpoint": str(run[0]), **options})


def requests(*arguments: tuple[Any, ...]) -> list[Any]:
    from lm_eval.api.instance import Instance

    return [Instance("", {}, one, i) for i, one in enumerate(arguments)]


@pytest.fixture(scope="module")
def own_scores(run, benchmarks, tmp_path_factory) -> dict[str, float]:
    """Scores of the same records from `python -m mm1_jax evaluate`."""
    output = tmp_path_factory.mktemp("own")
    flags = (f"--checkpoint={run[0]}", f"--output={output}", f"--benchmarks_dir={benchmarks}")
    names = ("--benchmarks=arc_easy,lambada", "--shots=0")
    assert evaluate.main([*flags, *names, "--set=arc_easy.exemplar_split=test"]) == 0
    return json.loads((output / "scores.json").read_text())


def test_the_model_is_registered_beside_those_of_the_harness():
    from lm_eval.api.registry import get_model, model_registry

    from mm1_jax.evals.adapters.lm_eval import MM1ForLmEval

    assert get_model("mm1_jax") is MM1ForLmEval
    assert "hf" in model_registry


def test_arc_has_the_likelihoods_and_accuracy_of_our_own_scoring(run, tasks, scorer, own_scores):
    found = evaluated(run[0], tasks, "arc_here")
    for sample in found["samples"]["arc_here"]:
        question = f"Question: What melts, {sample['doc_id']}?\nAnswer:"
        asked = [LikelihoodRequest(text(question), f" {option}") for option in OPTIONS]
        assert [one[0] for one in sample["filtered_resps"]] == pytest.approx(
            [one.log_probability for one in scorer(asked)], rel=1e-5
        )
    values = found["results"]["arc_here"]
    assert 0 < values["acc,none"] < 1
    for metric in ("acc", "acc_norm"):
        assert 100 * values[f"{metric},none"] == pytest.approx(own_scores[f"arc_easy/0/{metric}"])


def test_lambada_has_the_accuracy_and_perplexity_of_our_own_scoring(run, tasks, own_scores):
    values = evaluated(run[0], tasks, "lambada_here")["results"]["lambada_here"]
    assert 0 < values["acc,none"] < 1
    assert 100 * values["acc,none"] == pytest.approx(own_scores["lambada/0/acc"])
    assert values["perplexity,none"] == pytest.approx(own_scores["lambada/0/perplexity"], rel=1e-5)


def direct(run, page: str, max_length: int) -> float:
    """Computes the log-probability of a page from all logits of the harness's windows."""
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    _, models, cfg = run
    tokenizer = PromptInput.of(cfg.input).tokenizer
    total = 0.0
    for window in get_rolling_token_windows(
        tokenizer.encode(page), tokenizer.bos, max_length, context_len=1
    ):
        context, continuation = make_disjoint_window(window)
        sequence = [*context, *continuation]
        logits = all_logits(models[7], sequence[:-1])
        rows = jax.nn.log_softmax(logits, axis=-1)
        places = np.arange(len(context) - 1, len(sequence) - 1)
        total += float(jnp.sum(rows[places, jnp.array(continuation)]))
    return total


def all_logits(model: Any, tokens: list[int]) -> jax.Array:
    from mm1_jax.batch import Example

    length = len(tokens)
    example = Example(
        tokens=np.array(tokens, np.int32),
        targets=np.zeros(length, np.int32),
        loss_mask=np.zeros(length, bool),
        images=(),
    )
    batch = assemble([example], lambda image: None, ROW)
    return _logits(model, batch)[0]


@jax.jit
def _logits(model: Any, batch: Any) -> jax.Array:
    return model.logits(model(batch, dropless=True).hidden).astype(jnp.float32)


@pytest.mark.parametrize("max_length", [64, 16])
def test_pages_have_the_likelihood_of_the_harnesss_windows(run, max_length):
    asked = requests(*[(page,) for page in PAGES])
    found = model(run, max_length=max_length, batch_size=2).loglikelihood_rolling(asked)
    assert found == pytest.approx([direct(run, page, max_length) for page in PAGES], rel=1e-5)


def test_the_perplexity_of_pages_equals_a_direct_computation(run, tasks):
    values = evaluated(run[0], tasks, "pages_here")["results"]["pages_here"]
    pages = [page for page in PAGES if page]
    total = sum(direct(run, page, 64) for page in pages)
    num_bytes = sum(len(page.encode()) for page in pages)
    assert values["byte_perplexity,none"] == pytest.approx(np.exp(-total / num_bytes), rel=1e-5)


def test_answers_equal_the_models_up_to_a_stop_string(run, tasks):
    samples = evaluated(run[0], tasks, "questions_here")["samples"]["questions_here"]
    said = [answer(run, context, max_new_tokens=4) for context in CONTEXTS]
    cut = [words.split(stop_string(run))[0].split(".")[0] for words in said]
    assert [sample["filtered_resps"][0] for sample in samples] == cut
    assert cut != said


def test_sampled_answers_differ_between_repeats_but_not_between_runs(run):
    options = {"until": [], "max_gen_toks": 6, "do_sample": True, "temperature": 2.0, "top_k": 50}
    asked = requests(*[(CONTEXTS[0], options)] * 3)
    first = model(run, batch_size=2).generate_until(asked)
    assert len(set(first)) > 1
    assert model(run, batch_size=3).generate_until(asked) == first
    assert model(run, seed=1).generate_until(asked) != first
    sampling = Sampling(2.0, top_k=50)
    assert first[0] == answer(run, CONTEXTS[0], max_new_tokens=6, sampling=sampling, seed=0)


@pytest.mark.parametrize(
    ("options", "is_greedy"),
    [({"do_sample": False, "temperature": 1.0}, True), ({"temperature": 0.0, "num_beams": 1}, True)]
    + [
        ({"do_sample": True, "temperature": 0.0, "top_p": 0.9}, True),
        ({"temperature": 9.0}, False),
    ],
)
def test_answers_are_greedy_if_the_harness_asks_for_it(run, options, is_greedy):
    given = {"until": "", "max_gen_toks": 6, **options}
    (found,) = model(run).generate_until(requests((CONTEXTS[0], given)))
    assert (found == answer(run, CONTEXTS[0], max_new_tokens=6)) == is_greedy


def test_too_long_contexts_lose_their_beginning_with_one_warning(run, scorer, caplog):
    asked = " ".join(["one two three"] * 60)
    with caplog.at_level(logging.WARNING):
        lm = model(run, batch_size=2)
        found = lm.loglikelihood(requests((asked, " four"), (f"x {asked}", " four")))
        assert caplog.text.count("2 requests are longer than max_length=64") == 1
        options = {"until": [], "max_gen_toks": 4}
        said = lm.generate_until(requests((asked, options), (f"x {asked}", options)))
        assert caplog.text.count("2 prompts are longer than max_length=64") == 1
    assert found[0] == found[1] and said[0] == said[1]
    tokenizer = PromptInput.of(run[2].input).tokenizer
    kept = tokenizer.decode(tokenizer.encode(asked)[-(64 - 4 - 1) :])
    assert said[0] == answer(run, kept, max_new_tokens=4)


def test_an_answer_that_leaves_no_room_for_its_prompt_is_rejected(run):
    with pytest.raises(ValueError, match="max_gen_toks"):
        model(run).generate_until(requests(("x y z", {"until": [], "max_gen_toks": 63})))


def test_a_chat_has_the_tokens_of_a_training_conversation(run):
    turns = [("system", "be brief"), ("user", "is it red?"), ("assistant", "no"), ("user", "blue?")]
    lm = model(run)
    prompt = lm.apply_chat_template([{"role": r, "content": t} for r, t in turns])
    assert prompt == "be brief USER: is it red? ASSISTANT: no USER: blue? ASSISTANT:"
    turns.append(("assistant", "yes"))
    document = conversation_document(
        {"images": (), "turns": [{"role": r, "text": t} for r, t in turns]}
    )
    tokenizer = PromptInput.of(run[2].input).tokenizer
    segments = [tokenizer.encode(segment.text) for segment in document.segments[:-1]]
    assert tokenizer.encode(prompt) == [token for ids in segments for token in ids]
    whole = [{"role": r, "content": t} for r, t in turns]
    assert lm.apply_chat_template(whole, add_generation_prompt=False) == f"{prompt} yes"
    assert lm.chat_template(True) == "USER: {content} ASSISTANT:"
    assert lm.tokenizer_name == tokenizer.fingerprint()
    with pytest.raises(ValueError, match="omit the name"):
        lm.chat_template("vicuna")


def test_a_run_is_not_asked_in_another_chat_format(run):
    lm = model(run)
    lm._run.chat_format = MM1ChatFormat.default_config()
    with pytest.raises(ValueError, match="the chat format of the run, would be characters"):
        lm.apply_chat_template([{"role": "user", "content": "is it red?"}])


def test_questions_can_be_asked_as_a_chat(run, tasks):
    found = evaluated(run[0], tasks, "questions_here", apply_chat_template=True, limit=1)
    (sample,) = found["samples"]["questions_here"]
    asked = f"USER: {CONTEXTS[0]} ASSISTANT:"
    assert sample["arguments"][0][0] == asked
    said = answer(run, asked, max_new_tokens=4)
    assert sample["filtered_resps"][0] == said.split(stop_string(run))[0].split(".")[0]


@pytest.mark.parametrize("name", ["arc_here", "pages_here", "questions_here"])
def test_answers_in_the_cache_of_the_harness_are_not_asked_again(
    run, tasks, tmp_path, name, monkeypatch
):
    from mm1_jax.evals.adapters import run_model

    first = evaluated(run[0], tasks, name, use_cache=str(tmp_path / "cache"))

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("asked again")

    monkeypatch.setattr(run_model, "generate", refuse)
    monkeypatch.setattr(LikelihoodScorer, "__call__", refuse)
    monkeypatch.setattr(LikelihoodScorer, "rolling", refuse)
    again = evaluated(run[0], tasks, name, use_cache=str(tmp_path / "cache"))
    assert again["results"] == first["results"]


def test_answers_before_an_interruption_are_cached(run, tmp_path, monkeypatch):
    """The cache gets each answer immediately, and not at the end."""
    from lm_eval.api.model import CachingLM

    from mm1_jax.evals.adapters import run_model

    lm = CachingLM(model(run), str(tmp_path / "cache.db"))
    calls = []

    def stop(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return generate(*arguments, **options)

    monkeypatch.setattr(run_model, "generate", stop)
    options = {"until": [], "max_gen_toks": 2}
    asked = requests(*[(context, options) for context in CONTEXTS[:4]])
    with pytest.raises(KeyboardInterrupt):
        lm.generate_until(asked)
    lm.generate_until(asked)
    assert len(calls) == 3 + 2


def test_the_command_evaluates_and_writes_results(run, tasks, tmp_path):
    """Runs in a separate process, which imports the run's experiment by its module."""
    conftest = Path(__file__).with_name("conftest.py").read_text()
    (tmp_path / "experiment_of_the_tool_test.py").write_text(
        f"{conftest}\n\ndef named_configs():\n    return {{'minute': experiment}}\n"
    )
    command = [sys.executable, "-m", "mm1_jax.evals.adapters.lm_eval", "--model", "mm1_jax"]
    command += [
        "--model_args",
        f"checkpoint={run[0]},step=7",
        "--tasks",
        "arc_here",
        "--limit",
        "5",
    ]
    command += ["--include_path", str(tasks), "--output_path", str(tmp_path / "out")]
    flags = {"PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, sys.path)])}
    process = subprocess.run(
        command,
        env=os.environ | flags | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr[-3000:]
    assert "|arc_here|" in process.stdout
    (file,) = (tmp_path / "out").rglob("results_*.json")
    written = json.loads(file.read_text())
    inside = evaluated(run[0], tasks, "arc_here", limit=5)
    assert written["results"]["arc_here"]["acc,none"] == inside["results"]["arc_here"]["acc,none"]
    assert written["config"]["checkpoint_step"] == 7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"checkpoint": "/nowhere"}, "no such folder"),
        ({"colour": "red"}, "has no colour; it has checkpoint"),
        ({"step": 4}, "step=4"),
        ({"step": "last"}, "step=last: must be a whole number, at least 0"),
        ({"batch_size": "auto"}, "batch_size=auto: must be a whole number, at least 1"),
        ({"max_length": 1}, "max_length=1: must be a whole number, at least 2"),
        ({"max_gen_toks": 0}, "max_gen_toks=0"),
    ],
)
def test_invalid_options_are_rejected(options, message, run):
    with pytest.raises(ValueError, match=message):
        model(run, **options)


def test_unsupported_generation_options_are_rejected(run):
    with pytest.raises(ValueError, match="num_beams.*one beam"):
        model(run).generate_until(requests(("x", {"until": [], "num_beams": 3})))
    with pytest.raises(ValueError, match="top_p=2"):
        model(run).generate_until(requests(("x", {"until": [], "temperature": 1.0, "top_p": 2})))
