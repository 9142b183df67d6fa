"""lmms-eval evaluates a run's model on tasks and data on disk."""

import importlib.util
import io
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

if importlib.util.find_spec("lmms_eval") is None:
    pytest.skip("lmms-eval is not installed", allow_module_level=True)

pytestmark = [
    # lmms-eval raises many warnings of its own.
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

QUESTIONS = ("what digit is this?", "is it a three?", "how many are there?")


def png(level: int) -> bytes:
    file = io.BytesIO()
    PIL.Image.fromarray(np.full((8, 8, 3), level, np.uint8)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def tasks(tmp_path_factory) -> Path:
    """A generation task with pictures, and a multiple-choice task without."""
    folder = tmp_path_factory.mktemp("tasks")
    rows = [
        {"image": {"bytes": png(80 * i), "path": f"{i}.png"}, "question": question}
        | {"answer": "three", "choices": ["a", "two words", "red"], "gold": i}
        for i, question in enumerate(QUESTIONS)
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "rows.parquet")
    shared = f"""\
        dataset_path: parquet
        dataset_kwargs:
          data_files:
            test: {folder / "rows.parquet"}
        test_split: test
        metadata:
          - version: 0.0
        """
    (folder / "utils.py").write_text(
        textwrap.dedent(
            """\
            import io

            import PIL.Image


            def doc_to_visual(doc):
                image = doc["image"]
                if isinstance(image, dict):
                    image = PIL.Image.open(io.BytesIO(image["bytes"]))
                return [image.convert("RGB")]


            def no_visual(doc):
                return []


            def doc_to_text(doc, lmms_eval_specific_kwargs=None):
                return doc["question"]


            def process_results(doc, results):
                return {"said": results[0]}


            def aggregate(values):
                return len(values)
            """
        )
    )
    generated = """\
        task: pictures_generated
        output_type: generate_until
        doc_to_visual: !function utils.doc_to_visual
        doc_to_text: !function utils.doc_to_text
        doc_to_target: "answer"
        generation_kwargs:
          max_new_tokens: 4
          until:
            - "."
        process_results: !function utils.process_results
        metric_list:
          - metric: said
            aggregation: !function utils.aggregate
            higher_is_better: true
        """
    chosen = """\
        task: text_chosen
        output_type: multiple_choice
        doc_to_visual: !function utils.no_visual
        doc_to_text: "{{question}}"
        doc_to_target: "gold"
        doc_to_choice: "choices"
        metric_list:
          - metric: acc
            aggregation: mean
            higher_is_better: true
        """
    for name, text in (("generated", generated), ("chosen", chosen)):
        content = textwrap.dedent(shared) + textwrap.dedent(text)
        (folder / f"{name}.yaml").write_text(content)
    return folder


def evaluated(folder: Path, tasks: Path, name: str) -> Any:
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager

    from mm1_jax.evals.adapters.lmms_eval import MM1ForLmmsEval

    model = MM1ForLmmsEval.create_from_arg_string(
        f"checkpoint={folder},prompt=plain", {"batch_size": 2, "device": None}
    )
    manager = TaskManager("ERROR", include_path=str(tasks), include_defaults=False)
    return simple_evaluate(
        model=model, tasks=[name], task_manager=manager, bootstrap_iters=0, log_samples=True
    )


def test_lmms_eval_finds_the_model_by_its_name():
    from lmms_eval.models.registry_v2 import ModelRegistryV2

    from mm1_jax.evals.adapters.lmms_eval import MM1ForLmmsEval, manifest

    registry = ModelRegistryV2()
    registry.register_manifest(manifest())
    assert registry.get_model_class("mm1_jax") is MM1ForLmmsEval


def test_pictures_and_questions_of_a_task_reach_the_model(run, tasks):
    folder, models, cfg = run
    found = evaluated(folder, tasks, "pictures_generated")
    samples = found["samples"]["pictures_generated"]
    assert len(samples) == len(QUESTIONS)
    from mm1_jax.batch import Document, Image, Text
    from mm1_jax.data.rows import RowShape, assemble
    from mm1_jax.decoding.generate import generate
    from mm1_jax.decoding.options import DecodingOptions
    from mm1_jax.evals.evaluator import PromptInput

    input = PromptInput.of(cfg.input)
    for sample in samples:
        number = sample["doc_id"]
        image = Image(png(80 * number))
        document = Document((image, Text(QUESTIONS[number])))
        batch = assemble(
            [input.example_builder.prompt(document)], input.image_transform, RowShape(64, 1, 8)
        )
        tokenizer = input.tokenizer
        tokens = generate(
            models[7],
            batch,
            DecodingOptions.of(tokenizer, 4),
        )
        said = tokenizer.decode(np.asarray(tokens)[0].tolist()).split(".")[0]
        assert sample["filtered_resps"][0].strip() == said.strip()


def test_the_most_likely_option_of_a_multiple_choice_is_chosen(run, tasks):
    folder, models, cfg = run
    found = evaluated(folder, tasks, "text_chosen")
    from mm1_jax.batch import Document, Text
    from mm1_jax.evals.evaluator import PromptInput
    from mm1_jax.evals.likelihood import LikelihoodRequest, LikelihoodScorer

    input = PromptInput.of(cfg.input)
    scorer = LikelihoodScorer(input.tokenizer, image_size=8, batch_size=3)
    correct = []
    for number, question in enumerate(QUESTIONS):
        options = [
            LikelihoodRequest(Document((Text(question),)), f" {text}")
            for text in ("a", "two words", "red")
        ]
        totals = [one.log_probability for one in scorer(models[7], options)]
        correct.append(int(np.argmax(totals)) == number)
    (value,) = (v for k, v in found["results"]["text_chosen"].items() if k.startswith("acc,"))
    assert value == pytest.approx(np.mean(correct))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("checkpoint=/nowhere", "no such folder"),
        ("checkpoint={run},prompt=fancy", "must be one of chat, plain"),
        ("checkpoint={run},colour=red", "has no colour"),
        ("checkpoint={run},step=4", "step=4"),
    ],
)
def test_invalid_options_are_rejected(arguments, message, run):
    from mm1_jax.evals.adapters.lmms_eval import MM1ForLmmsEval

    with pytest.raises(ValueError, match=message):
        MM1ForLmmsEval.create_from_arg_string(arguments.format(run=run[0]))
