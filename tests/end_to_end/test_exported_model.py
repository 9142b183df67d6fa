"""A trained model answers every held-out digit question in transformers as it does here.

    MM1_TRAINED_RUN=runs/mm1_tiny pytest -m slow tests/end_to_end/test_exported_model.py -s

Without a run of `mm1_tiny`, one is trained for a few steps; its answers are poor, but must agree.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from near_ties import is_near_tie
from transformers import AutoModelForImageTextToText, AutoProcessor

from mm1_jax.data.corpora import digits
from mm1_jax.data.corpora.embedded import Kind
from mm1_jax.decoding.options import before_stop
from mm1_jax.evals.benchmarks.digits import digits_vqa
from mm1_jax.evals.scoring.texts import exact_match

ROOT = Path(__file__).parent.parent.parent
NUM_SCANS = 359
BATCH_SIZE = 64


def run(*arguments: object) -> None:
    command = [sys.executable, *map(str, arguments)]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    environment["XLA_FLAGS"] = os.environ["MM1_TEST_XLA_FLAGS"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    print(done.stdout)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    if "MM1_TRAINED_RUN" in os.environ:
        return Path(os.environ["MM1_TRAINED_RUN"]).resolve()
    folder = tmp_path_factory.mktemp("runs") / "mm1_tiny"
    fields = ["trainer.max_steps=40", "trainer.optimizer.warmup_steps=4"]
    # The evaluations of training are not used; the digits are asked again.
    for name in ("digits_caption", "scenes_vqa", "scenes_caption"):
        fields += [f"evals.{name}.{field}" for field in ("shots=(0,)", "num_examples=4")]
    fields.append("evals.digits_vqa.shots=(0,)")
    overrides = [f"--config.{field}" for field in fields]
    run("-m", "mm1_jax.launch", "--config=mm1_tiny", f"--output_dir={folder}", *overrides)
    return folder


@pytest.mark.slow
def test_transformers_gives_our_answer_to_every_held_out_digit_question(
    trained, tmp_path, monkeypatch
):
    exported, evaluation = tmp_path / "hf", tmp_path / "evaluation"
    run("tools/convert_checkpoint.py", "export", f"--checkpoint={trained}", f"--output={exported}")
    run(
        *("tools/evaluate.py", f"--checkpoint={trained}", f"--output={evaluation}"),
        *("--benchmarks=digits_vqa", "--shots=0"),
    )
    lines = (evaluation / "digits_vqa" / "0_shot.jsonl").read_text().splitlines()
    ours = [json.loads(line) for line in lines[1:]]
    assert len(ours) == NUM_SCANS

    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    processor = AutoProcessor.from_pretrained(exported, trust_remote_code=True)
    model = AutoModelForImageTextToText.from_pretrained(
        exported, dtype=torch.float32, trust_remote_code=True
    ).eval()
    records = digits.corpus(Kind.QUESTIONS).instantiate(split="test").source
    cfg, theirs, is_tied = digits_vqa(), [], []
    for start in range(0, len(ours), BATCH_SIZE):
        part = ours[start : start + BATCH_SIZE]
        inputs = processor(
            images=[records[int(line["key"])]["images"][0] for line in part],
            text=[f"<image>{line['prompt']}" for line in part],
            return_tensors="pt",
        )
        said = model.generate(
            **inputs,
            max_new_tokens=cfg.max_new_tokens,
            do_sample=False,
            return_dict_in_generate=True,
            output_scores=True,
        )
        answers = processor.tokenizer.batch_decode(
            said.sequences[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True
        )
        theirs += [before_stop(answer, cfg.stop_strings).strip() for answer in answers]
        for steps in torch.stack(said.scores, dim=1).numpy():
            is_tied.append(any(is_near_tie(scores, *scores.argsort()[-2:]) for scores in steps))

    references = [records[int(line["key"])]["answer"] for line in ours]
    right = [
        sum(map(exact_match, answers, references))
        for answers in ([line["text"] for line in ours], theirs)
    ]
    print(f"right of {NUM_SCANS}: ours {right[0]}, transformers {right[1]}")
    different = [line["text"] != text for line, text in zip(ours, theirs, strict=True)]
    clear = [i for i in range(NUM_SCANS) if different[i] and not is_tied[i]]
    assert not clear, [(ours[i], theirs[i]) for i in clear]
    assert sum(different) <= 2 and abs(right[0] - right[1]) <= sum(different)
