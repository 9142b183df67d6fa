import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
import tarfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from drawn_corpus import input_config
from input_benchmark import contestants, synthetic
from input_benchmark.pipelines import bare_views

from mm1_jax.batch import Image, View
from mm1_jax.data.images import ImageTransform, JpegDecoder

HERE = Path(__file__).parent
TOOL = HERE.parents[1] / "tools" / "benchmark_input.py"
_spec = importlib.util.spec_from_file_location("benchmark_input_tool", TOOL)
tool = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(tool)

ARGUMENTS = ("--module=drawn_experiment", "--config=drawn", "--rounds=1")


@pytest.fixture
def quick(monkeypatch):
    """Makes the drawn experiment importable, turns short and synthetic pictures small."""
    monkeypatch.setenv("PYTHONPATH", str(HERE.parent / "data"))
    monkeypatch.setattr(contestants, "LEAST_SECONDS", 0.01)
    picture = synthetic.picture
    monkeypatch.setattr(synthetic, "picture", lambda rng, width: picture(rng, 60))


def small_config():
    return tool.input_config(input_config(), 4)


def test_recorded_pictures_equal_those_of_the_batches_with_their_texts():
    input = small_config().instantiate()
    recorded = tool.record(small_config())
    iterator = input.iterator()
    batches = [next(iterator) for _ in range(tool.NUM_RECORDED)]
    assert len(recorded.images) == sum(int(np.sum(batch.image_index >= 0)) for batch in batches)
    assert all(image.data.shape == (8, 8, 3) for image in recorded.images)
    texts = Counter()
    for batch in batches:
        for b, k in zip(*np.nonzero(batch.image_index >= 0), strict=True):
            is_image = batch.tokens[b] == input.tokenizer.image_token
            last = np.flatnonzero(is_image)[(k + 1) * input.num_image_tokens - 1]
            if not is_image[last + 1]:
                ends = np.flatnonzero(np.diff(batch.segment_ids[b], append=-1))
                stop = ends[ends >= last][0] + 1
                after = np.flatnonzero(is_image[last + 1 : stop])
                stop = last + 1 + after[0] if after.size else stop
                texts[input.tokenizer.decode(batch.tokens[b, last + 1 : stop].tolist())] += 1
            else:
                texts[""] += 1
    assert Counter(recorded.texts) == texts
    assert any(text.startswith("about") for text in texts)


def test_the_batches_of_this_process_repeat():
    counts = tool.batches_of(small_config().instantiate())
    first = [next(counts) for _ in range(tool.NUM_RECORDED)]
    assert [next(counts) for _ in range(tool.NUM_RECORDED)] == first


@pytest.mark.parametrize(
    ("decoder", "grid"),
    [("PILLOW", None), ("PILLOW", (2, 1)), ("PILLOW_DRAFT", None), ("SIMPLEJPEG", None)],
)
def test_the_limit_makes_the_pixels_of_the_input(decoder, grid):
    if decoder == "SIMPLEJPEG":
        pytest.importorskip("simplejpeg")
    cfg = ImageTransform.default_config().set(image_size=16, jpeg_decoder=JpegDecoder[decoder])
    image = Image(synthetic.picture(np.random.default_rng(0), 120))
    views = [image]
    if grid is not None:
        views += [dataclasses.replace(image, view=View(*grid, i, 0)) for i in range(2)]
    expected = cfg.instantiate().views(views)
    np.testing.assert_array_equal(bare_views(image.data, views, 16, cfg), expected)


def test_synthetic_data_has_pictures_pages_and_texts(quick, tmp_path):
    cfg = tool.input_config(input_config(max_sequence_length=1024), 4)
    cfg.streams = tool.synthetic_streams(tmp_path, 60, 40)
    input = cfg.instantiate()
    assert input.corpus_names == ["captions", "interleaved", "text"]
    assert all(not lengths.unusable for lengths in input.lengths)
    recorded = tool.record(cfg)
    tool.write_shard(tmp_path / "shard.tar", recorded)
    with tarfile.open(tmp_path / "shard.tar") as tar:
        names = tar.getnames()
        assert tar.extractfile(names[0]).read() == recorded.images[0].data
    assert len(names) == 2 * len(recorded.images)


def test_cpu_time_of_the_process_and_its_workers_is_counted():
    def busy(seconds: float):
        start = time.process_time()
        while time.process_time() - start < seconds:
            pass

    def alone():
        while True:
            busy(0.01)
            yield tool.Counts(1, 2)

    def with_worker():
        program = (
            "import sys, time\n"
            "for _ in sys.stdin: sum(range(10**6)); print(time.process_time(), flush=True)"
        )
        worker = subprocess.Popen(
            [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        with worker:
            while True:
                worker.stdin.write(b"\n")
                worker.stdin.flush()
                times.append(float(worker.stdout.readline()))
                yield tool.Counts(1, 2)

    images, tokens, seconds = tool.Contestant(alone).turn()
    assert tokens == 2 * images and seconds >= 0.01 * images
    times = []
    batches = with_worker()
    contestant = tool.Contestant(lambda: batches)
    assert contestant.turn().seconds >= times[-1] - times[0] - 2 / os.sysconf("SC_CLK_TCK")
    batches.close()


def test_the_demand_for_cores_follows_from_pictures_step_time_and_hosts():
    cfg = input_config(batch_size=64, image_group_rows=16, images_per_row=4)
    sizes = {"images_per_second": 100.0, "step_seconds": 2.0}
    need = tool.demand(cfg, 5.0, 90.0, num_hosts=4, **sizes)
    assert need["images_per_step"] == 320 and need["tokens_per_step"] == 64 * 90
    assert need["cores_of_a_host"] == 320 / 4 / 100 / 2
    # Two hosts of eight rows share a group of sixteen, so each also decodes the other's pictures.
    need = tool.demand(cfg, 5.0, 90.0, num_hosts=8, **sizes)
    assert need["cores_of_a_host"] == 2 * 320 / 8 / 100 / 2
    with pytest.raises(ValueError, match="--hosts=7: must divide input.batch_size=64"):
        tool.demand(cfg, 5.0, 90.0, num_hosts=7, **sizes)


def test_synthetic_pictures_are_compared_only_with_the_limit(quick, tmp_path, capsys):
    path = tmp_path / "report.json"
    options = (f"--json={path}", "--step_seconds=0.5", "--hosts=2", "--rows=2")
    assert tool.main([*ARGUMENTS, *options]) == 0
    out = capsys.readouterr().out
    report = json.loads(path.read_text())
    assert list(report["results"]) == [tool.LIMIT, tool.IN_PROCESS, tool.WORKER]
    assert report["results"][tool.LIMIT]["of_the_limit"] == 1
    assert all(result["images_per_second"] > 0 for result in report["results"].values())
    assert report["demand"]["hosts"] == 2
    assert f"{report['demand']['cores_of_a_host']:.1f} such cores" in out


@pytest.mark.slow
def test_files_are_compared_with_webdataset(tmp_path):
    """Slow, because torch is imported here and in a worker."""
    pytest.importorskip("webdataset")
    path = tmp_path / "report.json"
    options = ("--config=mm1_tiny", "--rounds=1", "--rows=1", "--synthetic", f"--json={path}")
    subprocess.run([sys.executable, TOOL, *options], check=True, capture_output=True, text=True)
    results = json.loads(path.read_text())["results"]
    assert set(results) >= {tool.OTHER_IN_PROCESS, tool.OTHER_WORKER}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--config=drawm",), "did you mean drawn"),
        (("--config.input.max_images=0",), "input.max_images=0: the model reads images"),
    ],
)
def test_errors_are_one_line(quick, capsys, arguments, message):
    assert tool.main([*ARGUMENTS, *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and message in line


@pytest.mark.parametrize("option", ["--rows=0", "--rounds=x", "--hosts=-1", "--step_seconds=0"])
def test_invalid_numbers_are_rejected(capsys, option):
    with pytest.raises(SystemExit):
        tool.parse(["--config=drawn", option])
    assert option.partition("=")[0] in capsys.readouterr().err
