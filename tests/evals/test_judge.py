"""The HTTP judge, and the two benchmarks that it grades, in their official layouts."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from mm1_jax.evals import asking
from mm1_jax.evals.benchmarks.mmvet import grading_prompt
from mm1_jax.evals.benchmarks.registry import JUDGED
from mm1_jax.evals.evaluation import evaluate
from mm1_jax.evals.judge import Judge
from mm1_jax.evals.predictions.registry import SCORERS
from mm1_jax.evals.predictions.scorer import ScoringJob
from mm1_jax.models.mm1 import MM1


class Endpoint:
    """A server that records requests and answers by `replies`: a text, a status, or headers too."""

    def __init__(self):
        self.replies: Any = None
        self.requests: list[tuple[str, dict[str, str], dict[str, Any]]] = []
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                length = int(self.headers["Content-Length"])
                body = json.loads(self.rfile.read(length))
                endpoint.requests.append((self.path, dict(self.headers), body))
                reply = endpoint.replies(body)
                status, headers = (reply, {}) if isinstance(reply, int) else (200, {})
                if isinstance(reply, tuple):
                    status, headers = reply
                content = b"not now"
                if status == 200:
                    message = {"role": "assistant", "content": reply}
                    content = json.dumps(
                        {"model": "judge-0001", "choices": [{"message": message}]}
                    ).encode()
                if reply == "<html>":
                    content = b"<html>"
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_):
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"

    def say(self, *replies: Any) -> None:
        rest = iter(replies)
        self.replies = lambda body: next(rest)


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    endpoint = Endpoint()
    thread = threading.Thread(target=endpoint.server.serve_forever, args=(0.01,))
    thread.start()
    yield endpoint
    endpoint.server.shutdown()
    thread.join()
    endpoint.server.server_close()


HELLO = [{"role": "user", "content": "hello"}]
waits: list[float] = []


@pytest.fixture
def judge(endpoint, tmp_path) -> Judge:
    waits.clear()
    return Judge(endpoint.url, "gpt-x", cache_dir=tmp_path / "cache", sleep=waits.append)


def ask(judge: Judge, **options: Any):
    return judge.ask(HELLO, **({"temperature": 0.5, "max_tokens": 7} | options))


def test_a_request_is_a_chat_completion_with_the_key_from_the_environment(
    judge, endpoint, monkeypatch
):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    endpoint.say("8 7")
    reply = ask(judge)
    assert (reply.text, reply.model, reply.is_new) == ("8 7", "judge-0001", True)
    ((path, headers, body),) = endpoint.requests
    assert path == "/v1/chat/completions" and headers["Authorization"] == "Bearer sk-secret"
    assert body == {"model": "gpt-x", "messages": HELLO, "temperature": 0.5, "max_tokens": 7}


def test_requests_are_cached_without_the_key(judge, endpoint, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    endpoint.say("8 7", "5 5", "4", "3")
    assert ask(judge).text == "8 7"
    again = Judge(endpoint.url, "gpt-x", cache_dir=tmp_path / "cache")
    assert ask(again).text == "8 7" and not ask(again).is_new and again.num_requests == 0
    # Another run, temperature or judge makes a new request.
    assert ask(again, run=1).text == "5 5"
    assert ask(again, temperature=0.0).text == "4"
    other = Judge(endpoint.url, "gpt-y", cache_dir=tmp_path / "cache")
    assert ask(other).text == "3" and len(endpoint.requests) == 4
    kept = [path.read_text() for path in (tmp_path / "cache").iterdir()]
    assert len(kept) == 4 and not any("sk-secret" in text for text in kept)
    assert all(len(path.stem) == 64 for path in (tmp_path / "cache").iterdir())


def test_a_damaged_cached_reply_is_requested_again(judge, endpoint, tmp_path):
    endpoint.say("8 7", "6 6")
    ask(judge)
    (path,) = (tmp_path / "cache").iterdir()
    path.write_text(path.read_text()[:40])
    assert ask(judge).text == "6 6"


def test_transient_errors_are_retried_with_increasing_delays(judge, endpoint):
    endpoint.say(500, (429, {"Retry-After": "7"}), 503, "8 7")
    assert ask(judge).text == "8 7"
    assert waits == [1.0, 7.0, 4.0] and judge.num_requests == 4


def test_persistent_errors_are_reported(judge, endpoint, tmp_path):
    endpoint.replies = lambda body: 500
    with pytest.raises(ValueError, match="6 attempts failed, the last with HTTP 500 not now"):
        ask(judge)
    endpoint.replies = lambda body: 401
    with pytest.raises(ValueError, match="HTTP 401 .*OPENAI_API_KEY must hold its key"):
        ask(judge)
    assert len(endpoint.requests) == 7
    endpoint.replies = lambda body: "<html>"
    with pytest.raises(ValueError, match="is not a chat completion"):
        ask(judge)
    assert not (tmp_path / "cache").exists()


def test_redirects_never_receive_the_key(judge, endpoint, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    endpoint.say((302, {"Location": f"{endpoint.url}/elsewhere"}))
    with pytest.raises(ValueError, match="HTTP 302"):
        ask(judge)
    assert len(endpoint.requests) == 1


def test_an_unreachable_server_is_retried_and_named(tmp_path):
    judge = Judge(
        "http://127.0.0.1:9/v1", "x", cache_dir=tmp_path, max_attempts=2, sleep=waits.append
    )
    with pytest.raises(ValueError, match="2 attempts failed, the last with URLError"):
        ask(judge)


@pytest.mark.parametrize(
    ("url", "model", "message"),
    [
        ("http://judge.example/v1", "x", "use https://, or allow it with --judge_allow_http"),
        ("http://10.0.0.1/v1", "x", "without TLS"),
        ("ftp://judge.example", "x", "expected https://HOST/v1"),
        ("judge.example", "x", "expected https://HOST/v1"),
        ("https://me:secret@judge.example/v1", "x", "is read from OPENAI_API_KEY"),
        ("https://judge.example/v1", "", "--judge_model: needed"),
    ],
)
def test_an_invalid_url_is_rejected(url, model, message, tmp_path):
    with pytest.raises(ValueError, match=message) as error:
        Judge(url, model, cache_dir=tmp_path)
    assert "secret" not in str(error.value)


def test_remote_judges_need_tls_or_explicit_permission(tmp_path):
    Judge("https://judge.example/v1", "x", cache_dir=tmp_path)
    Judge("http://judge.example/v1", "x", cache_dir=tmp_path, allow_http=True)
    for url in ("http://localhost:1/v1", "http://[::1]:1/v1", "http://127.0.0.2/v1"):
        Judge(url, "x", cache_dir=tmp_path)


CATEGORIES = ("conv", "detail", "complex", "conv")


@pytest.fixture
def benchmarks_dir(tmp_path) -> Path:
    """A folder of both benchmarks, with the files and keys that their publishers document."""
    folder = tmp_path / "benchmarks"
    llava, mmvet = folder / "llava_bench", folder / "mmvet"
    for root in (llava, mmvet):
        (root / "images").mkdir(parents=True)
    questions, contexts, references, vet = [], [], [], {}
    for i, category in enumerate(CATEGORIES):
        for path in (llava / "images" / f"00{i}.jpg", mmvet / "images" / f"v1_{i}.png"):
            PIL.Image.fromarray(np.full((8, 8, 3), i, np.uint8)).save(path)
        questions.append(
            {"question_id": i, "image": f"00{i}.jpg", "text": f"What is {i}?"}
            | {"category": category}
        )
        contexts.append({"id": f"00{i}", "image": f"00{i}.jpg", "caption": f"A picture of {i}."})
        references.append(
            {"question_id": i, "prompt": "x", "answer_id": f"r{i}", "model_id": "gpt4"}
            | {"metadata": {}, "text": f"It is {i}."}
        )
        vet[f"v1_{i}"] = {
            **{"imagename": f"v1_{i}.png", "question": f"What is {i}?", "imagesource": "x"},
            **{"answer": f"{i}<AND>x<OR>y", "capability": ["ocr", "math"][: 1 + i % 2]},
        }
    for name, rows in (
        ("questions", questions),
        ("context", contexts),
        ("answers_gpt4", references),
    ):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (llava / f"{name}.jsonl").write_text(lines)
    rules = {
        f"llava_bench_{name}": {"role": "Assistant", "prompt": f"Grade both, {name}."}
        for name in ("conv", "detail", "complex")
    }
    (llava / "rule.json").write_text(json.dumps(rules))
    (mmvet / "mm-vet.json").write_text(json.dumps(vet))
    (mmvet / "mm-vet_evaluator.py").write_text(
        "import openai_that_is_not_there\n"
        'prompt = """Grade.\n\nQuestion | Truth"""\nprint(prompt)\n'
    )
    return folder


class NoBar:
    def __init__(self, *about):
        self.about, self.count = about, 0
        bars.append(self)

    def update(self):
        self.count += 1

    def close(self):
        pass


bars: list[NoBar] = []


def run(name, folder, input, monkeypatch, tmp_path, judge=None, **fields):
    """Evaluates a model whose answer to question I is "no.", a line break, and I."""
    cfg = JUDGED[name]().set(**({"batch_size": 2, "max_new_tokens": 16} | fields))
    cfg.corpus.source.data_dir = str(folder)
    benchmark = cfg.instantiate(input=input)
    asked = iter(range(99))

    def generate(model, batch, options):
        rows = np.full((len(batch.tokens), options.max_new_tokens), options.pad)
        for row, segments in zip(rows, batch.segment_ids, strict=True):
            if segments.any():
                ids = [*input.tokenizer.encode(f"no.\n{next(asked)}"), options.eos]
                row[: len(ids)] = ids
        return rows

    monkeypatch.setattr(asking, "generate", generate)
    bars.clear()
    scores = evaluate(
        benchmark,
        object.__new__(MM1),
        0,
        folder=tmp_path / "out",
        identity={"step": 1},
        make_bar=NoBar,
        judge=judge,
    )
    return scores, tmp_path / "out" / name


@pytest.mark.parametrize("name", JUDGED)
def test_without_a_judge_answers_are_written_for_the_official_code(
    name, benchmarks_dir, input, monkeypatch, tmp_path
):
    scores, folder = run(name, benchmarks_dir, input, monkeypatch, tmp_path)
    assert scores.headline is None and scores.metrics == {"n": 4}
    if name == "mmvet":
        answers = json.loads((folder / "0_shot_predictions.json").read_text())
        assert answers == {f"v1_{i}": f"no.\n{i}" for i in range(4)}
        return
    lines = (folder / "0_shot_predictions.jsonl").read_text().splitlines()
    answers = [json.loads(line) for line in lines]
    assert [one["question_id"] for one in answers] == [0, 1, 2, 3]
    assert [one["text"] for one in answers] == [f"no.\n{i}" for i in range(4)]
    assert set(answers[0]) == {
        *("question_id", "prompt", "text", "answer_id", "model_id", "metadata")
    }


def test_llava_bench_is_graded_against_the_reference_and_a_second_run_asks_nothing(
    benchmarks_dir, input, monkeypatch, tmp_path, judge, endpoint
):
    endpoint.say("8 4\nBecause.", 500, "10, 5", "no grades", "6 6")
    scores, folder = run("llava_bench", benchmarks_dir, input, monkeypatch, tmp_path, judge)
    asked = endpoint.requests[0][2]
    assert asked["temperature"] == 0.2 and asked["max_tokens"] == 1024
    (message,) = asked["messages"]
    assert message == {
        "role": "user",
        "content": "[Context]\nA picture of 0.\n\n[Question]\nWhat is 0?\n\n"
        "[Assistant 1]\nIt is 0.\n\n[End of Assistant 1]\n\n"
        "[Assistant 2]\nno.\n0\n\n[End of Assistant 2]\n\n"
        "[System]\nGrade both, conv.\n\n",
    }
    assert scores.headline == scores.metrics["relative"] == 62.5
    assert scores.metrics["relative_conv"] == round(100 * 5 / 7, 1)
    assert scores.metrics["relative_detail"] == 50
    assert "relative_complex" not in scores.metrics
    assert scores.metrics["unreadable_reviews"] == 1
    assert bars[-1].about[1] == bars[-1].count == 4
    # The file can be scored alone, without the review that has no grades.
    path = folder / "0_shot_review1.jsonl"
    reviews = [json.loads(line) for line in path.read_text().splitlines()]
    assert [review["tuple"] for review in reviews] == [[8, 4], [10, 5], [-1, -1], [6, 6]]
    kept = [json.dumps(review) for review in reviews if review["tuple"][0] >= 0]
    path.write_text("\n".join(kept))
    alone = SCORERS["llava_bench"].score_file(path, ScoringJob())
    assert alone["all"]["relative"] == scores.headline
    num_requests = len(endpoint.requests)
    again, _ = run("llava_bench", benchmarks_dir, input, monkeypatch, tmp_path, judge)
    assert again.metrics == scores.metrics and len(endpoint.requests) == num_requests


def test_mmvet_is_graded_per_run_and_per_capability(
    benchmarks_dir, input, monkeypatch, tmp_path, judge, endpoint
):
    grades = {0: ["1.0", "0.5 or so"], 1: ["0.0", "0.0"], 2: ["0.5", "1.0"]}
    counts = dict.fromkeys(range(4), 0)

    def reply(body):
        asked = body["messages"][0]["content"]
        number = int(asked.split("What is ")[1][0])
        counts[number] += 1
        return grades[number][counts[number] - 1] if number in grades else "none"

    endpoint.replies = reply
    scores, folder = run(
        "mmvet", benchmarks_dir, input, monkeypatch, tmp_path, judge, num_judge_runs=2
    )
    first = endpoint.requests[0][2]
    assert first["messages"][0]["content"] == (
        "Grade.\n\nQuestion | Truth\nWhat is 0? | 0 <AND> x <OR> y | no.\n0 | "
    )
    assert first["temperature"] == 0 and first["max_tokens"] == 3
    # The last question never gets a number: the judge is asked five times per run; then it is 0.
    assert counts == {0: 2, 1: 2, 2: 2, 3: 10}
    temperatures = [body["temperature"] for _, _, body in endpoint.requests[6:11]]
    assert temperatures == [0, 0, 0.5, 1.0, 1.5]
    assert scores.metrics["unreadable_grades"] == 2
    assert scores.headline == pytest.approx(100 * (1 + 0.5 + 0.5 + 1) / 8)
    assert scores.metrics["std"] == pytest.approx(0)
    assert scores.metrics["total_ocr"] == scores.metrics["total"]
    assert scores.metrics["total_math"] == 0
    alone = SCORERS["mmvet"].score_file(
        folder / "0_shot_grades.json", ScoringJob(benchmarks_dir / "mmvet" / "mm-vet.json")
    )
    assert alone["total"] == pytest.approx(scores.headline)
    num_requests = len(endpoint.requests)
    run("mmvet", benchmarks_dir, input, monkeypatch, tmp_path, judge, num_judge_runs=2)
    assert len(endpoint.requests) == num_requests
    # The answers and the reviews of a single run are already there.
    run("mmvet", benchmarks_dir, input, monkeypatch, tmp_path, judge, num_judge_runs=1)
    assert len(endpoint.requests) == num_requests


def test_missing_files_of_the_judge_are_named(benchmarks_dir, input, monkeypatch, tmp_path, judge):
    (benchmarks_dir / "mmvet" / "mm-vet_evaluator.py").write_text("prompts = 'x'\n")
    with pytest.raises(ValueError, match="mm-vet_evaluator.py: it assigns no text to `prompt`"):
        run("mmvet", benchmarks_dir, input, monkeypatch, tmp_path, judge)
    (benchmarks_dir / "mmvet" / "mm-vet_evaluator.py").unlink()
    with pytest.raises(ValueError, match="prompt.txt: no such file, nor mm-vet_evaluator.py"):
        run("mmvet", benchmarks_dir, input, monkeypatch, tmp_path, judge)
    (benchmarks_dir / "mmvet" / "prompt.txt").write_text("Grade this.")
    assert grading_prompt(benchmarks_dir / "mmvet" / "prompt.txt") == "Grade this."
    (benchmarks_dir / "llava_bench" / "rule.json").write_text("{}")
    with pytest.raises(ValueError, match="rule.json: no rule 'llava_bench_conv'"):
        run("llava_bench", benchmarks_dir, input, monkeypatch, tmp_path, judge)
    (benchmarks_dir / "llava_bench" / "answers_gpt4.jsonl").write_text(
        json.dumps({"question_id": 0, "text": "x"})
    )
    with pytest.raises(ValueError, match=r"record 2 .*answers_gpt4.jsonl has no '1'"):
        run("llava_bench", benchmarks_dir, input, monkeypatch, tmp_path, judge)
