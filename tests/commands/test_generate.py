import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from mm1_jax.commands import generate as tool
from mm1_jax.data.corpora import digits
from mm1_jax.data.corpora.embedded import Kind
from mm1_jax.data.examples import ExampleBuilder
from mm1_jax.data.rows import RowShape, assemble
from mm1_jax.decoding.generate import generate
from mm1_jax.decoding.options import DecodingOptions
from mm1_jax.evals.prompts import without_answer


@pytest.fixture
def scan() -> tuple[np.ndarray, object]:
    corpus = digits.corpus(Kind.QUESTIONS).instantiate(split="test")
    return corpus.source[0]["images"][0], corpus.document(0)


@pytest.fixture
def picture(tmp_path, scan) -> Path:
    path = tmp_path / "digit.png"
    PIL.Image.fromarray(scan[0]).save(path)
    return path


def ask(folder, *flags: str) -> str:
    return tool.answer(tool.parse([f"--checkpoint={folder}", "--max_new_tokens=5", *flags]))


def expected(cfg, model, document) -> str:
    tokenizer = cfg.input.tokenizer.instantiate()
    builder = ExampleBuilder(tokenizer, num_image_tokens=4, max_sequence_length=64, max_images=2)
    transform = cfg.input.image_transform.set(image_size=8).instantiate()
    batch = assemble([builder.prompt(document)], transform, RowShape(32, 1, 8))
    tokens = generate(model, batch, DecodingOptions.of(tokenizer, 5))
    return tokenizer.decode(np.asarray(tokens)[0].tolist()).strip()


def test_a_question_goes_to_the_newest_checkpoint_in_the_training_format(run, scan, picture):
    folder, models, cfg = run
    question = scan[1].segments[1].text.removeprefix("Question: ").removesuffix(" Short answer:")
    answers = {
        step: expected(cfg, model, without_answer(scan[1])) for step, model in models.items()
    }
    assert answers[3] != answers[7]
    assert ask(folder, f"--image={picture}", f"--prompt={question}") == answers[7]
    assert ask(folder, f"--image={picture}", f"--prompt={question}", "--step=3") == answers[3]


def test_each_format_makes_its_prompt():
    def parts(prompt, format, num_images=1):
        return tool.parts(prompt, format, num_images)

    assert parts("is it odd?", "question") == [None, "Question: is it odd? Short answer:"]
    assert parts("", "caption") == [None]
    assert parts("a picture of", "caption") == [None, "a picture of"]
    assert parts("is it odd?", "raw", 0) == ["is it odd?"]
    assert parts("<image> is it odd?", "question") == parts("is it odd?", "question")
    assert parts("is <image> odd?", "question") == ["Question: is", None, "odd? Short answer:"]
    few_shot = "<image> Question: a? Short answer: b <image> Question: c? Short answer:"
    assert parts(few_shot, "raw", 2) == [
        *(None, "Question: a? Short answer: b"),
        *(None, "Question: c? Short answer:"),
    ]
    assert parts("same?", "question", 2) == [None, None, "Question: same? Short answer:"]


def test_the_default_format_depends_on_the_prompt():
    def formats(*flags):
        parsed = tool.parse(["--checkpoint=a", *flags])
        return [tool.format_of(parsed, has_chat_format) for has_chat_format in (False, True)]

    assert formats("--prompt=what?") == ["question", "chat"]
    assert formats("--image=a.png") == ["caption", "caption"]
    assert formats("--image=a.png", "--prompt=a", "--format=raw") == ["raw", "raw"]


def test_image_marks_and_pictures_must_match():
    with pytest.raises(ValueError, match="2 <image> marks and there are 1 images"):
        tool.parts("<image> and <image>", "question", 1)


def test_mistakes_are_named(run, picture, tmp_path):
    folder, _, _ = run
    question = "--prompt=what digit is this?"
    broken = tmp_path / "broken.png"
    broken.write_bytes(picture.read_bytes()[:40])
    for flags, message in (
        ((f"--image={tmp_path / 'none.png'}", question), "none.png: cannot be read"),
        ((f"--image={broken}", question), "broken.png: not an image that can be decoded"),
        (
            ("--prompt=" + 100 * "what ",),
            "the prompt has .* positions .* above the 64 of the model",
        ),
        ((question, "--step=4"), r"step=4: no complete checkpoint .* \[3, 7\] are there"),
        ((question, "--top_k=4"), "top_k=4, .* temperature=0, which is greedy"),
    ):
        with pytest.raises(ValueError, match=message):
            ask(folder, *flags)
    with pytest.raises(ValueError, match="nowhere: no such folder"):
        ask(tmp_path / "nowhere", question)
    with pytest.raises(ValueError, match="no run there"):
        ask(tmp_path, question)


def test_an_answer_is_sampled_by_seed_or_found_by_beam_search(run, picture):
    folder, _, _ = run
    flags = (f"--image={picture}", "--prompt=what digit is this?")
    greedy = ask(folder, *flags)
    assert ask(folder, *flags, "--temperature=1", "--top_k=1") == greedy
    drawn = [ask(folder, *flags, "--temperature=2", f"--seed={seed}") for seed in (1, 2, 1)]
    assert drawn[0] == drawn[2] != drawn[1]
    assert isinstance(ask(folder, *flags, "--beams=3", "--cache_dtype=int8"), str)


def test_beam_search_does_not_sample(capsys):
    for flags, message in (
        (("--beams=0",), "argument --beams: '0': expected a whole number, at least 1"),
        (("--max_new_tokens=0",), "argument --max_new_tokens: '0': expected"),
        (("--temperature=-1",), "argument --temperature: '-1': expected a number at least 0"),
        (("--top_p=2",), "argument --top_p: '2': expected a number above 0 and at most 1"),
        (("--beams=2", "--temperature=1"), "beam search does not sample"),
    ):
        with pytest.raises(SystemExit):
            tool.parse(["--checkpoint=a", "--prompt=a", *flags])
        assert message in capsys.readouterr().err


def test_the_module_of_a_run_is_found_in_the_current_folder(run, tmp_path, monkeypatch, capsys):
    folder, _, _ = run
    launched = tmp_path / "runs"
    shutil.copytree(folder, launched)
    launch = json.loads((launched / "launch.json").read_text())
    (launched / "launch.json").write_text(json.dumps(launch | {"module": "module_of_mine"}))
    code = f"from {launch['module']} import named_configs\n"
    (tmp_path / "module_of_mine.py").write_text(code)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    monkeypatch.setattr(sys, "argv", ["generate.py", f"--checkpoint={launched}", "--prompt=what?"])
    assert tool.main() == 2
    assert "cannot import 'module_of_mine'" in capsys.readouterr().err
    monkeypatch.chdir(tmp_path)
    assert tool.main() == 0
    assert capsys.readouterr().out.endswith("\n")
    del sys.modules["module_of_mine"]


def test_help_explains_the_formats_and_loads_no_jax():
    code = (
        "import sys; from mm1_jax.__main__ import main\n"
        "try: main(['generate', '--help'])\n"
        "except SystemExit: print('loaded:', sorted({'jax', 'flax', 'grain'} & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert "loaded: []" in result.stdout
    assert "Question: PROMPT Short answer:" in result.stdout
