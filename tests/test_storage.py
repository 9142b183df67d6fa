"""Folders that are complete or absent, and JSON objects of users."""

import json
import os
import subprocess
import sys

import pytest

from mm1_jax.storage import contents_digest, read_json_object, whole_folder

# Ends inside of a folder as if killed, or waits there until its input ends.
WRITER = """
import os, sys
from pathlib import Path
from mm1_jax.storage import whole_folder
with whole_folder(Path(sys.argv[1])) as folder:
    (folder / "large").write_bytes(bytes(1000))
    print(folder.name, flush=True)
    if sys.argv[2] == "killed":
        os._exit(9)
    sys.stdin.read()
"""


def start(folder, how):
    command = [sys.executable, "-c", WRITER, str(folder), how]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_remains_of_killed_processes_are_removed_and_folders_in_use_are_not(tmp_path):
    with start(tmp_path / "a", "killed") as killed, start(tmp_path / "a", "waiting") as waiting:
        stale = killed.stdout.readline().strip()
        used = waiting.stdout.readline().strip()
        assert killed.wait() == 9
        # Folders with other names are not removed.
        other = tmp_path / "a_longer_name.partial-x"
        other.mkdir()
        with whole_folder(tmp_path / "a") as mine:
            names = {path.name for path in tmp_path.iterdir()}
            assert stale not in names and names == {used, mine.name, other.name}
            (mine / "ours").touch()
        # The waiting process ends later and leaves the present folder alone.
        waiting.communicate("")
        assert waiting.returncode == 0
    assert sorted(os.listdir(tmp_path)) == ["a", other.name]
    assert os.listdir(tmp_path / "a") == ["ours"]


def test_partial_folders_of_one_process_do_not_remove_each_other(tmp_path):
    with whole_folder(tmp_path / "a") as first, whole_folder(tmp_path / "a") as second:
        assert first.is_dir() and second.is_dir()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_json_may_begin_with_a_byte_order_mark(encoding, tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(json.dumps({"a": "\u00e9"}, ensure_ascii=False).encode(encoding))
    assert read_json_object(path) == {"a": "\u00e9"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[1]", "a JSON object is expected, and it is a list"),
        (b"null", "and it is null"),
        (b"3", "and it is a number"),
        (b'{"a": 1', "no JSON"),
        (b"[" * 10**5, "nested too deeply"),
        (b'{"a": 1, "a": 2}', "'a' is there twice, with different values"),
        (b'{"a": {"b": 1, "b": 2}}', "'b' is there twice"),
        (b'{"a": "\xff"}', "no JSON"),
    ],
)
def test_invalid_json_objects_are_named_with_their_file(content, message, tmp_path):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match=f"a.json: .*{message}"):
        read_json_object(tmp_path / "a.json")


def test_a_repeated_name_with_equal_values_is_read(tmp_path):
    (tmp_path / "a.json").write_text('{"a": 1, "a": 1}')
    assert read_json_object(tmp_path / "a.json") == {"a": 1}


def test_a_digest_depends_on_the_contents_and_not_on_the_path(tmp_path):
    folders = [tmp_path / "here", tmp_path / "elsewhere" / "there"]
    for folder in folders:
        (folder / "part").mkdir(parents=True)
        (folder / "part" / "a").write_bytes(b"one")
    assert len({contents_digest(folder) for folder in folders}) == 1
    before = contents_digest(folders[0])
    (folders[0] / "part" / "a").write_bytes(b"two")
    (folders[1] / "part" / "a").rename(folders[1] / "part" / "b")
    assert len({before, *map(contents_digest, folders)}) == 3
