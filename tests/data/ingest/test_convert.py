import dataclasses
import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from foreign_formats import Broken, Numbered, Pages, contents, write_numbers

from mm1_jax.data.ingest import convert as convert_module
from mm1_jax.data.ingest.conversion_log import finished_parts
from mm1_jax.data.ingest.convert import Conversion, content_counts, convert
from mm1_jax.data.ingest.filters import EvaluationOverlap, FrequentImages, ImageCount, ImageFilter
from mm1_jax.data.ingest.formats.registry import make_format
from mm1_jax.data.ingest.runners import Workers
from mm1_jax.data.readers.entries import Rejected, reason_class
from mm1_jax.data.record_files import Manifest, RecordFiles, RecordKind, verify

HERE = Path(__file__).parent


@pytest.fixture
def conversion(tmp_path) -> Conversion:
    """A conversion of 68 entries in eight units, two of them empty, with seven records a shard."""
    source = write_numbers(tmp_path / "source", [40, 3, 25, 0])
    return Conversion(
        Numbered(), (source,), tmp_path / "output", license="mine", max_shard_bytes=14_000
    )


def first_units(count: int):
    """A runner that is interrupted after `count` units."""

    def run(job, units, watch):
        for number, unit in units[:count]:
            job(number, unit)
        raise KeyboardInterrupt

    return run


def stop_after(conversion: Conversion, count: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        convert(conversion, runner=first_units(count))


def test_entries_become_records_or_quarantine_lines_in_order(conversion):
    (source,) = conversion.inputs
    entries = [
        (unit, entry)
        for unit in conversion.format.units(source)
        for entry in conversion.format.read(unit)
    ]
    manifest = convert(conversion)
    records = RecordFiles(conversion.output)
    assert [records[i] for i in range(len(records))] == [
        entry for _, entry in entries if not isinstance(entry, Rejected)
    ]
    log = (conversion.output / "quarantine.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in log] == [
        {
            "id": entry.id,
            "unit": f"{unit.path}, part 1" if unit.part else str(unit.path),
            "reason": entry.reason,
        }
        for unit, entry in entries
        if isinstance(entry, Rejected)
    ]
    assert manifest.counts == {
        "entries": 68,
        "rejected": 8,
        "records": 60,
        "images": 60,
        "image_bytes": 60 * 2000,
        "characters": sum(len(records[i]["captions"][0]["text"]) for i in range(60)),
        "rejected.N ...": 5,
        "rejected.no image: N": 3,
    }


def test_the_manifest_describes_the_inputs_and_options(conversion):
    convert(conversion)
    manifest = Manifest.read(conversion.output)
    (source,) = conversion.inputs
    assert manifest.kind is RecordKind.CAPTIONS and manifest.license == "mine"
    files = manifest.made_from.pop("files")
    assert (files["number"], files["bytes"]) == (4, 6)
    assert manifest.made_from == {
        "format": "numbered",
        "options": {},
        "inputs": [str(source)],
        "license": "mine",
        "filters": [],
        "max_shard_bytes": 14_000,
    }
    assert list(verify(conversion.output)) == []


def test_a_shard_ends_when_it_is_full(conversion):
    shards = convert(conversion).shards
    # A record has slightly more than 2000 bytes; the last shard of a unit may be short.
    assert [(shard.name, shard.num_records) for shard in shards] == [
        ("records-00000-00.array_record", 7),
        ("records-00000-01.array_record", 7),
        ("records-00000-02.array_record", 3),
        ("records-00001-00.array_record", 7),
        ("records-00001-01.array_record", 7),
        ("records-00001-02.array_record", 4),
        ("records-00002-00.array_record", 2),
        ("records-00003-00.array_record", 1),
        ("records-00004-00.array_record", 7),
        ("records-00004-01.array_record", 4),
        ("records-00005-00.array_record", 7),
        ("records-00005-01.array_record", 4),
    ]


def test_a_part_ends_before_its_rejected_entries_fill_memory(conversion, tmp_path, monkeypatch):
    convert(conversion)
    monkeypatch.setattr(convert_module, "_MAX_REJECTED", 1)
    other = dataclasses.replace(conversion, output=tmp_path / "other", max_shard_bytes=2**30)
    stop_after(other, 1)
    parts = finished_parts(other.output, 0)
    # The unit has entries 0, 2, 4, ...; 6, 20 and 34 are bad.
    assert [part.num_entries for part in parts] == [4, 7, 7, 2]
    assert [len(part.rejected) for part in parts] == [1, 1, 1, 0]
    convert(other)
    before, after = RecordFiles(conversion.output), RecordFiles(other.output)
    assert [after[i] for i in range(len(after))] == [before[i] for i in range(len(before))]
    log = "quarantine.jsonl"
    assert (other.output / log).read_bytes() == (conversion.output / log).read_bytes()


def test_the_number_of_workers_does_not_change_the_output(conversion, tmp_path):
    filters = (FrequentImages.default_config(),)
    conversion = dataclasses.replace(conversion, filters=filters)
    convert(conversion)
    other = dataclasses.replace(conversion, output=tmp_path / "other")
    convert(other, runner=Workers(3))
    assert contents(other.output) == contents(conversion.output)


def test_a_conversion_killed_at_any_moment_can_be_resumed(tmp_path):
    command = [sys.executable, HERE / "killed_conversions.py", tmp_path]
    path = os.pathsep.join([str(HERE), str(HERE.parents[2])])
    result = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) > 40


@pytest.mark.parametrize("count", [0, 1, 5])
def test_finished_units_are_not_read_again(conversion, count):
    stop_after(conversion, count)
    seen = []
    convert(conversion, on_progress=seen.append)
    before = {0: 0, 1: 20, 5: 56}[count]
    assert (seen[-1].units, seen[-1].num_units, seen[-1].entries) == (8, 8, 68 - before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"license": "yours"}, 'license: "mine" before, "yours" now'),
        ({"max_shard_bytes": 20_000}, "max_shard_bytes: 14000 before, 20000 now"),
        ({"options": {"seconds": 1}}, "options: seconds: null before, 1 now"),
        ({"filters": (ImageFilter.default_config(),)}, r'filters: \[\] before, .*"min_side": 100'),
    ],
)
@pytest.mark.parametrize("is_done", [False, True])
def test_another_command_into_the_same_folder_is_rejected(conversion, change, message, is_done):
    if is_done:
        convert(conversion)
    else:
        stop_after(conversion, 1)
    before = contents(conversion.output)
    with pytest.raises(ValueError, match=message):
        convert(dataclasses.replace(conversion, **change))
    assert contents(conversion.output) == before


@pytest.mark.parametrize("is_done", [False, True])
def test_inputs_that_have_changed_are_refused(conversion, is_done):
    if is_done:
        convert(conversion)
    else:
        stop_after(conversion, 1)
    (source,) = conversion.inputs
    (source / "0.number").write_text("400")
    with pytest.raises(ValueError, match="files: .*before, .* now"):
        convert(conversion)


def test_a_finished_conversion_does_not_need_its_inputs(conversion):
    manifest = convert(conversion)
    (source,) = conversion.inputs
    for path in source.iterdir():
        path.unlink()
    # A kill just after the manifest is written leaves this folder.
    (conversion.output / "progress").mkdir()
    assert convert(conversion) == manifest
    assert not (conversion.output / "progress").exists()


def test_too_many_bad_entries_stop_a_conversion_and_a_higher_limit_resumes_it(tmp_path):
    # The odd entries of a file are its second unit; every other one is bad.
    source = write_numbers(tmp_path / "source", [1000, 1000])
    numbered = Numbered(bad_every=4, image_bytes=10)
    conversion = Conversion(numbered, (source,), tmp_path / "stopped")
    with pytest.raises(ValueError, match=r"250 of 1000 .*: 250 x 'no image: N'\. .*\.jsonl"):
        convert(conversion)
    assert len((conversion.output / "quarantine.jsonl").read_text().splitlines()) == 250
    seen = []
    convert(conversion, max_bad_fraction=0.25, on_progress=seen.append)
    assert seen[-1].entries == 1000
    straight = dataclasses.replace(conversion, output=tmp_path / "straight")
    convert(straight, max_bad_fraction=0.25)
    assert contents(conversion.output) == contents(straight.output)


def test_the_limit_of_bad_entries_needs_enough_entries(tmp_path):
    source = write_numbers(tmp_path / "source", [800])
    numbered = Numbered(image_bytes=10, bad_every=8)
    assert convert(Conversion(numbered, (source,), tmp_path / "a")).counts["rejected"] == 100
    numbered = Numbered(image_bytes=10, bad_every=7)
    with pytest.raises(ValueError, match="114 of 800 entries"):
        convert(Conversion(numbered, (source,), tmp_path / "b"))


def test_a_conversion_without_any_record_is_an_error(tmp_path):
    source = write_numbers(tmp_path / "source", [2])
    conversion = Conversion(Numbered(bad_every=1), (source,), tmp_path / "output")
    with pytest.raises(ValueError, match=r"none of 2 entries .*'no image: N'\. .*jsonl lists"):
        convert(conversion)
    assert not (conversion.output / "manifest.json").exists()


def test_an_output_folder_with_other_files_is_rejected(conversion):
    conversion.output.mkdir()
    (conversion.output / "holiday.jpg").write_text("")
    with pytest.raises(ValueError, match="holds other files .holiday.jpg.; convert into a new"):
        convert(conversion)
    assert list(contents(conversion.output)) == ["holiday.jpg"]


def test_only_one_process_at_a_time_converts_into_a_folder(conversion):
    stop_after(conversion, 1)
    with (conversion.output / "progress" / "lock").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match="another process is converting into"):
            convert(conversion)
    convert(conversion)


def test_nested_inputs_and_outputs_are_rejected(conversion, tmp_path):
    (source,) = conversion.inputs
    with pytest.raises(ValueError, match="1.number is in the inputs twice"):
        convert(dataclasses.replace(conversion, inputs=(source, source / "1.number")))
    with pytest.raises(ValueError, match="lies in the input"):
        convert(dataclasses.replace(conversion, output=source / "records"))
    assert not conversion.output.exists()


@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_file_that_cannot_be_read_is_named(conversion, num_workers):
    broken = dataclasses.replace(conversion, format=Broken())
    with pytest.raises(ValueError, match="0.number cannot be read: .*Input/output error"):
        convert(broken, runner=Workers(num_workers))
    # Finished units are kept.
    convert(conversion)
    assert not list(conversion.output.glob("*.partial"))


def test_frequent_images_are_counted_across_units(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    # Eleven pages show !often, one of them twice; ten show !seldom.
    first = [["a", "!often", "!seldom"]] * 6
    second = [["b", "!seldom", "!often", "!often"]] + [["c", "!often", "!seldom"]] * 3
    third = [["d", "!often"]]
    for name, pages in (("0", first), ("1", second), ("2", third)):
        (source / f"{name}.pages").write_text(json.dumps(pages))
    filters = (FrequentImages.default_config(), ImageCount.default_config())
    conversion = Conversion(Pages(), (source,), tmp_path / "output", filters=filters)
    counts = convert(conversion).counts
    records = RecordFiles(conversion.output)
    assert [records[i]["texts"] for i in range(len(records))] == (
        [["a", None]] * 6 + [["b", None]] + [["c", None]] * 3
    )
    assert all(records[i]["images"] == [None, b"!seldom"] for i in range(10))
    assert records[0]["urls"] == [None, "https://a.org/seldom"]
    assert {name: n for name, n in counts.items() if name[0].isupper()} == {
        "FrequentImages.frequent": 12,
        "ImageCount.too_few": 1,
        "ImageCount.records": 1,
    }


def test_a_stopped_count_of_images_is_resumed(conversion):
    conversion = dataclasses.replace(conversion, filters=(FrequentImages.default_config(),))
    stop_after(conversion, 2)
    counted = sorted((conversion.output / "progress").glob("images-*.npy"))
    assert len(counted) == 2
    for path in counted:
        # The merge needs sorted, unique keys; the units have 17 and 18 images.
        keys = np.load(path)
        assert 16 < len(keys) < 19 and (keys[1:] > keys[:-1]).all()
    seen = []
    convert(conversion, on_progress=seen.append)
    counting = [each for each in seen if each.stage == "counting images"]
    assert (counting[-1].units, counting[-1].entries) == (8, 28)


def test_images_of_benchmarks_are_logged(tmp_path):
    source, benchmark = tmp_path / "source", tmp_path / "benchmark"
    source.mkdir()
    benchmark.mkdir()
    (source / "0.pages").write_text(json.dumps([["a", "!x", "!y"], ["b", "!y"], ["c", "!z"]]))
    (benchmark / "1.png").write_bytes(b"!y")
    filters = (EvaluationOverlap.default_config().set(images=[str(benchmark)]),)
    conversion = Conversion(Pages(), (source,), tmp_path / "output", filters=filters)
    manifest = convert(conversion)
    log = (conversion.output / "overlap.jsonl").read_text().splitlines()
    found = {"benchmark": "benchmark/1.png", "same_bytes": True, "distance": 0}
    unit = {"unit": str(source / "0.pages")}
    assert [json.loads(line) for line in log] == [
        {"id": "0:0", "image": 2} | found | unit,
        {"id": "0:1", "image": 1} | found | unit,
    ]
    assert manifest.counts["EvaluationOverlap.same_bytes"] == 2
    assert manifest.counts["images"] == 2


def test_each_kind_of_record_has_its_counts():
    def counts(kind, **record):
        found = content_counts(record, kind)
        assert found.pop("records") == 1
        return list(found.values())

    captions = [{"text": "abc", "kind": "alt"}, {"text": "d", "kind": "caption"}]
    assert counts(RecordKind.CAPTIONS, image=b"12", captions=captions) == [1, 2, 4]
    assert counts(RecordKind.TEXT, text="abcde") == [0, 0, 5]
    turns = [{"role": "user", "text": "<image>"}, {"role": "assistant", "text": "no"}]
    assert counts(RecordKind.CONVERSATIONS, images=[b"1", b"23"], turns=turns) == [2, 3, 9]
    page = {"texts": ["ab", None, "c"], "images": [None, b"123", None]}
    assert counts(RecordKind.INTERLEAVED, **page, missing_images=0) == [1, 3, 3]
    assert counts(RecordKind.INTERLEAVED, **page, missing_images=2) == [1, 3, 3, 2]


def test_records_that_spell_special_tokens_are_counted():
    def marks(kind, **record):
        counts = content_counts(record, kind)
        return sorted(name for name in counts if name.startswith("marks."))

    text = "<PERSON> at <|im_end|><extra_id_12> or <extra_id_3>, [SEP] <s>x</s> <b> <|x <images>"
    found = ["</s>", "<PERSON>", "<extra_id_N>", "<s>", "<|im_end|>", "[SEP]"]
    assert marks(RecordKind.TEXT, text=text) == [f"marks.{mark}" for mark in found]
    caption = {"text": "<image> of a cat", "kind": "alt"}
    assert marks(RecordKind.CAPTIONS, image=b"x", captions=[caption]) == ["marks.<image>"]
    turns = [{"role": "user", "text": "<image> what?"}]
    assert marks(RecordKind.CONVERSATIONS, images=[b"x"], turns=turns) == []


def test_similar_reasons_are_counted_together():
    reason = "image 'a.jpg' is not in b.tar: cut short"
    assert reason_class(reason) == "image ... is not in b.tar: cut short"
    assert reason_class("3 texts beside 12 images") == reason_class("1 texts beside 2 images")
    assert reason_class('no "alt" (a list); 7 rows are not read') == "no ... (a list)"
    assert reason_class("image 3: matched_sim=None") == "image N: matched_sim=None"


def test_links_to_folders_are_named_and_followed_on_demand(tmp_path, caplog):
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "b.txt").write_text("two")
    source = tmp_path / "source"
    source.mkdir()
    (source / "a.txt").write_text("one")
    (source / "more").symlink_to(tmp_path / "disk")
    # Two links to one folder, and a cycle of links: each folder is read once.
    (source / "again").symlink_to(tmp_path / "disk")
    (tmp_path / "disk" / "circle").symlink_to(source)
    caplog.set_level("WARNING")
    for follow_links, texts in ((False, ["one"]), (True, ["one", "two"])):
        form = make_format("text", **({"follow_links": True} if follow_links else {}))
        conversion = Conversion(form, (source,), tmp_path / f"output_{follow_links}")
        convert(conversion)
        records = RecordFiles(conversion.output)
        assert [records[i]["text"] for i in range(len(records))] == texts
        # Named once, by the conversion that skipped the links.
        named = f"such as {source / 'again'}, {source / 'more'}; --option.follow_links=true"
        assert caplog.text.count(named) == 1
    (source / "a.txt").unlink()
    with pytest.raises(ValueError, match="found nothing of the kind; links .* 2, such as"):
        make_format("text").units(source)


def test_an_unreadable_git_lfs_pointer_is_named(tmp_path):
    (tmp_path / "a.jsonl").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    conversion = Conversion(make_format("llava"), (tmp_path,), tmp_path.parent / "lfs")
    with pytest.raises(ValueError, match=r"a.jsonl:0: a pointer of Git LFS .*`git lfs pull`"):
        convert(conversion)
