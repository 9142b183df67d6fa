import json

import pytest

from mm1_jax.data.ingest.formats.llava_mixture import LlavaMixture


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"a")
    for name in ("one", "two"):
        values = [
            {
                "image": "a.jpg",
                "conversations": [
                    {"from": "human", "value": f"<image> {name}{i}"},
                    {"from": "gpt", "value": "yes"},
                ],
            }
            for i in range(10)
        ]
        (tmp_path / name).mkdir()
        (tmp_path / name / "data.json").write_text(json.dumps(values))
    return tmp_path


def mixed(folder, *strategies):
    lines = ["datasets:"]
    for name, strategy in zip(("one", "two", "one"), strategies, strict=False):
        lines.append(f"  - json_path: {name}/data.json")
        if strategy:
            lines.append(f"    sampling_strategy: {strategy}")
    (folder / "mix.yaml").write_text("\n".join(lines))
    return folder / "mix.yaml"


def asked(records):
    return [record["turns"][0]["text"].removeprefix("<image> ") for record in records]


@pytest.mark.parametrize(
    ("strategy", "places"),
    [
        ("", range(10)),
        ("all", range(10)),
        ("first:3", range(3)),
        ("first:25%", range(3)),
        ("end:2", (8, 9)),
        ("end:15%", (8, 9)),
        ("first:99", range(10)),
        ("end:99", range(10)),
    ],
)
def test_a_yaml_file_samples_its_datasets(folder, convert, strategy, places):
    records, rejected = convert(LlavaMixture(), mixed(folder, strategy))
    assert rejected == [] and asked(records) == [f"one{place}" for place in places]
    assert {record["source"] for record in records} == {"one/data.json"}


def test_random_entries_depend_on_the_seed_alone(folder, convert):
    path = mixed(folder, "random:40%", "random:4")
    records, _ = convert(LlavaMixture(), path)
    found = asked(records)
    assert len(set(found)) == 8 and found == sorted(found)
    assert asked(convert(LlavaMixture(), path)[0]) == found
    assert any(asked(convert(LlavaMixture(seed=seed), path)[0]) != found for seed in range(1, 4))


def test_a_file_may_be_listed_twice(folder, convert):
    records, _ = convert(LlavaMixture(), mixed(folder, "first:1", "all", "end:1"))
    assert asked(records) == ["one0", *(f"two{i}" for i in range(10)), "one9"]


@pytest.mark.parametrize(
    ("times", "places"),
    [(1, range(10)), (0.25, range(2)), (0.3, range(3)), (2, [*range(10)] * 2)],
)
def test_a_meta_file_of_internvl_repeats_its_datasets(folder, convert, times, places):
    meta = {"set one": {"root": ".", "annotation": "one/data.json", "repeat_time": times}}
    (folder / "meta.json").write_text(json.dumps(meta))
    records, _ = convert(LlavaMixture(), folder / "meta.json")
    assert asked(records) == [f"one{place}" for place in places]
    assert {record["source"] for record in records} == {"set one"}


def test_boxes_of_a_meta_file_are_those_of_internvl(folder, convert):
    turns = [
        {"from": "human", "value": "<image> Where is <ref>the cat</ref>?"},
        {"from": "gpt", "value": "<ref>the cat</ref><box>[[10, 20, 300, 400]]</box>"},
    ]
    (folder / "boxes.jsonl").write_text(json.dumps({"image": "a.jpg", "conversations": turns}))
    (folder / "meta.json").write_text(json.dumps({"x": {"root": "", "annotation": "boxes.jsonl"}}))
    ((record,), _) = convert(LlavaMixture(), folder / "meta.json")
    assert [turn["text"] for turn in record["turns"]] == [
        "<image> Where is the cat?",
        "the cat <box>",
    ]
    assert record["boxes"] == [{"image": 0, "box": [0.01, 0.02, 0.3, 0.4]}]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("datasets: [{json_path: lost.json}]", "there is no file"),
        ("datasets: [{json_path: one/data.json, sampling_strategy: last:3}]", "expected all, or"),
        ("datasets: [{path: x}]", "expected a map with json_path"),
        ("datasets: {}", "expected a list of maps"),
        ("x: {root: lost, annotation: one/data.json}", "neither a folder nor a .tar"),
        ("x: {root: '', annotation: one/data.json, repeat_time: 0}", "a repeat_time above 0"),
        ("x: {root: ''}", "expected a map with annotation"),
        ("- x", "expected a mixture"),
        ("{", "expected a mixture"),
    ],
)
def test_a_mistake_in_a_mixture_is_named(folder, text, problem):
    (folder / "mix.yaml").write_text(text)
    with pytest.raises(ValueError, match=problem):
        LlavaMixture().units(folder / "mix.yaml")
