"""Tasks of the real library; skipped if it is not installed."""

import pickle
import sys
import warnings

import pytest

from mm1_jax.data.ingest.convert import Conversion
from mm1_jax.data.ingest.convert import convert as convert_files
from mm1_jax.data.ingest.formats.registry import make_format
from mm1_jax.data.record_files import RecordFiles, RecordKind

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    seqio = pytest.importorskip("seqio")

pytestmark = pytest.mark.filterwarnings("ignore")

TASKS = """
import functools
from pathlib import Path

import seqio
import tensorflow as tf

PREFIX = "PREFIX_"
VOCABULARY = seqio.ByteVocabulary(extra_ids=2)
FEATURES = {name: seqio.Feature(VOCABULARY, add_eos=True) for name in ("inputs", "targets")}


def texts(split, shuffle_files, seed=None, *, name, number):
    targets = [f"{name} {split} caf\\u00e9 {i}" for i in range(number)]
    return tf.data.Dataset.from_tensor_slices(
        {"inputs": [f"question {i}" for i in range(number)], "targets": targets}
    )


def fail(dataset):
    def check(text):
        if text == b"bad train caf\\xc3\\xa9 2":
            raise ValueError("damaged")
        return text

    def mapped(example):
        text = tf.numpy_function(check, [example["targets"]], tf.string)
        return example | {"targets": tf.ensure_shape(text, [])}

    return dataset.map(mapped)


def blank(dataset):
    def mapped(example):
        return example | {"targets": tf.strings.regex_replace(example["targets"], ".*1$", "")}

    return dataset.map(mapped)


def add(name, number, keeps, *steps):
    data = seqio.FunctionDataSource(
        functools.partial(texts, name=name, number=number), splits=["train", "test"]
    )
    tokenize = functools.partial(seqio.preprocessors.tokenize, copy_pretokenized=keeps)
    seqio.TaskRegistry.add(
        PREFIX + name,
        source=data,
        preprocessors=[*steps, tokenize, seqio.preprocessors.append_eos],
        output_features=FEATURES,
    )


add("kept", 5, True)
add("tokens", 3, False)
add("bad", 5, False, fail)
add("blank", 3, False, blank)
seqio.MixtureRegistry.add(PREFIX + "mixed", [(PREFIX + "tokens", 1), (PREFIX + "kept", 9)])
seqio.TaskRegistry.add(
    PREFIX + "lines",
    source=seqio.TextLineDataSource({"train": str(Path(__file__).parent / "*.txt")}),
    preprocessors=[
        lambda dataset: dataset.map(lambda line: {"targets": line}),
        seqio.preprocessors.tokenize,
    ],
    output_features={"targets": seqio.Feature(VOCABULARY)},
)
"""


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("project")
    for number in range(3):
        (folder / f"{number}.txt").write_text(f"line {number}\n\nmore {number}\n")
    path = folder / "seqio_test_tasks.py"
    path.write_text(TASKS.replace("PREFIX_", "mm1_test_"))
    return path


def make(task, **options):
    return make_format("seqio", task=f"mm1_test_{task}", **options)


def texts(records):
    return [record["text"] for record in records]


@pytest.mark.parametrize(("task", "number"), [("kept", 5), ("tokens", 3)])
def test_texts_equal_those_of_the_task_as_stored_or_decoded(tasks, convert, task, number):
    records, rejected = convert(make(task), tasks)
    assert texts(records) == [f"{task} train caf\u00e9 {i}" for i in range(number)]
    assert records[1]["id"] == f"mm1_test_{task}:train:0:1" and not rejected
    assert texts(convert(make(task, split="test"), tasks)[0])[0] == f"{task} test caf\u00e9 0"


def test_several_fields_become_a_line_each(tasks, convert):
    records, _ = convert(make("tokens", field="inputs,targets"), tasks)
    assert records[2]["text"] == "question 2\ntokens train caf\u00e9 2"


def test_a_mixture_has_every_example_of_its_tasks_once(tasks, convert):
    assert make("mixed").kind is RecordKind.TEXT
    records, rejected = convert(make("mixed"), tasks)
    expected = [f"kept train caf\u00e9 {i}" for i in range(5)]
    assert texts(records) == expected + [f"tokens train caf\u00e9 {i}" for i in range(3)]
    assert not rejected


def test_a_shard_of_the_source_is_a_unit(tasks, convert):
    form = make("lines")
    units = form.units(tasks)
    assert [unit.part for unit in units] == [0, 1, 2] and {unit.path for unit in units} == {tasks}
    records, rejected = convert(form, tasks)
    assert texts(records) == [f"{word} {i}" for i in range(3) for word in ("line", "more")]
    assert [item.reason for item in rejected] == ["empty text"] * 3


def test_a_failing_task_keeps_earlier_examples_and_is_reported(tasks, convert):
    records, (rejected,) = convert(make("bad"), tasks)
    assert texts(records) == ["bad train caf\u00e9 0", "bad train caf\u00e9 1"]
    assert rejected.id == "mm1_test_bad:train:0:2"
    assert "damaged" in rejected.reason and rejected.reason.endswith("; what follows is not read")


def test_a_blank_text_is_rejected_alone(tasks, convert):
    records, (rejected,) = convert(make("blank"), tasks)
    assert texts(records) == ["blank train caf\u00e9 0", "blank train caf\u00e9 2"]
    assert (rejected.id, rejected.reason) == ("mm1_test_blank:train:0:1", "empty text")


def test_a_conversion_writes_the_texts(tasks, tmp_path):
    options = dict(task="mm1_test_kept")
    convert_files(
        Conversion(make_format("seqio", **options), (tasks,), tmp_path / "out", options=options)
    )
    files = RecordFiles(tmp_path / "out")
    assert [files[i]["text"] for i in range(len(files))] == [
        f"kept train caf\u00e9 {i}" for i in range(5)
    ]


def test_a_module_of_a_package_is_imported_by_its_full_name(tmp_path, convert):
    package = tmp_path / "seqio_test_package"
    package.mkdir()
    (package / "__init__.py").write_text("NAME = 'packaged_'\n")
    source = TASKS.replace('PREFIX = "PREFIX_"', "from . import NAME as PREFIX")
    (package / "tasks.py").write_text(source)
    form = make_format("seqio", task="packaged_kept", module="seqio_test_package.tasks")
    records, _ = convert(form, package / "tasks.py")
    assert len(records) == 5 and "seqio_test_package.tasks" in sys.modules
    with pytest.raises(ValueError, match="another module 'seqio_test_package.tasks' is"):
        (tmp_path / "elsewhere" / "seqio_test_package").mkdir(parents=True)
        other = tmp_path / "elsewhere" / "seqio_test_package" / "tasks.py"
        other.write_text("")
        form.units(other)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (dict(), "needs a name: --option.task=NAME"),
        (dict(task="no_such"), "No Task or Mixture found with name 'no_such'"),
        (dict(task="mm1_test_kept", split="dev"), "no split 'dev'; there are train, test"),
        (dict(task="mm1_test_mixed", split="dev"), "no split 'dev'; there are "),
        (dict(task="mm1_test_kept", field="text"), "no feature text; there are inputs, targets"),
        (
            dict(task="mm1_test_kept", module="other.tasks"),
            "Python file of the module 'other.tasks'",
        ),
    ],
)
def test_missing_tasks_splits_and_fields_are_named(tasks, options, reason):
    form = make_format("seqio", **options)
    with pytest.raises(ValueError, match=reason):
        form.units(tasks)
    (rejected,) = pickle.loads(pickle.dumps(form)).read(make("kept").units(tasks)[0])
    assert rejected.reason


def test_files_that_are_not_modules_are_rejected(tmp_path):
    for name, text, reason in (
        ("seqio_test_broken.py", "1 / 0", "ZeroDivisionError"),
        ("tasks.txt", "", "expected the Python file"),
        ("missing.py", None, "expected the Python file"),
    ):
        if text is not None:
            (tmp_path / name).write_text(text)
        with pytest.raises(ValueError, match=f"{name}.*{reason}"):
            make("kept").units(tmp_path / name)
