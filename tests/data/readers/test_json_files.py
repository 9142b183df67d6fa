import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mm1_jax.data.readers import json_files
from mm1_jax.data.readers.entries import Rejected
from mm1_jax.data.readers.json_files import entries, parse_json, stream_json
from mm1_jax.data.record_files import BadRecord

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda values: st.lists(values, max_size=4) | st.dictionaries(st.text(), values, max_size=4),
    max_leaves=10,
)
QUICK = settings(
    derandomize=True,
    max_examples=60,
    deadline=None,
    # Every example rewrites the file and has the same chunk size.
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@pytest.fixture(params=[1, 3, 64])
def path(request, tmp_path, monkeypatch):
    """A file that is read in chunks of a few bytes."""
    monkeypatch.setattr(json_files, "_CHUNK_BYTES", request.param)
    return tmp_path / "values.json"


@given(
    values=st.lists(VALUES, max_size=6), is_ascii=st.booleans(), indent=st.sampled_from([None, 1])
)
@QUICK
def test_elements_of_a_list_equal_the_parsed_json(path, values, is_ascii, indent):
    path.write_text(json.dumps(values, ensure_ascii=is_ascii, indent=indent), "utf-8")
    found = list(stream_json(path))
    assert [element.value for element in found] == values
    assert [element.id for element in found] == [f"values.json:{i}" for i in range(len(values))]


@given(value=st.dictionaries(st.text(), VALUES, max_size=4))
@QUICK
def test_lists_in_an_object_are_read_by_element(path, value):
    path.write_text(json.dumps(value), "utf-8")
    again = {key: [] for key, one in value.items() if isinstance(one, list)}
    for element in stream_json(path):
        if element.place is None:
            again[element.key] = element.value
        else:
            assert len(again[element.key]) == element.place
            again[element.key].append(element.value)
    assert again == value


@given(values=st.lists(VALUES, min_size=2, max_size=5), data=st.data())
@QUICK
def test_a_truncated_list_is_reported_after_its_complete_elements(path, values, data):
    text = json.dumps(values)
    path.write_text(text[: data.draw(st.integers(0, len(text) - 1))], "utf-8")
    *found, last = stream_json(path)
    assert isinstance(last, Rejected)
    # The last number may be truncated.
    assert [element.value for element in found[:-1]] == values[: max(0, len(found) - 1)]


@pytest.mark.parametrize(
    ("text", "num_good"),
    [
        ("", 0),
        ("7", 0),
        ("[1, 2 3]", 2),
        ("[1, 2", 2),
        ("[1, {", 1),
        ("[1, ]", 1),
        ("[1] 2", 1),
        ("[1, tru]", 1),
        ('[1, "a\nb"]', 1),
        ('[1, "\\u12"]', 1),
        ('{"a": [1, 2], 3: 4}', 2),
        ('{"a": [1, 2] "b"}', 2),
        ('{"a"', 0),
        ("[1, " + "[" * 100_000, 1),
        ("[1, " + "9" * 10_000 + "]", 1),
    ],
)
def test_invalid_json_is_reported(path, text, num_good):
    path.write_text(text)
    *found, last = stream_json(path)
    assert isinstance(last, Rejected) and "what follows is not read" in last.reason
    assert len(found) == num_good


def test_an_element_that_is_not_utf8_is_reported(path):
    path.write_bytes(b'["caf\xc3\xa9", "caf\xe9"]')
    good, last = stream_json(path)
    assert good.value == "caf\u00e9" and "not UTF-8" in last.reason


def test_lone_surrogates_and_odd_numbers_are_valid_values(path):
    path.write_text('["\\udce9", NaN, -Infinity]')
    assert [element.value for element in stream_json(path)][::2] == ["\udce9", float("-inf")]


def test_an_oversized_element_is_not_read_to_its_end(path, monkeypatch):
    monkeypatch.setattr(json_files, "MAX_LINE_BYTES", 1000)
    path.write_text('[1, "' + "x" * 100_000 + '", 2]')
    good, last = stream_json(path)
    assert good.value == 1 and "more than 1000 characters" in last.reason


def test_entries_are_lines_or_list_elements(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n{"a":\n[2]\n')
    (tmp_path / "a.json").write_text('[{"a": 1}, [2]]')
    (tmp_path / "b.json").write_text('{"a": [1, 2]}')
    first, second, third = entries(tmp_path / "a.jsonl")
    assert (first, third) == (("a.jsonl:1", {"a": 1}), ("a.jsonl:3", [2]))
    assert second.id == "a.jsonl:2" and "not JSON" in second.reason
    assert list(entries(tmp_path / "a.json")) == [("a.json:0", {"a": 1}), ("a.json:1", [2])]
    (only,) = entries(tmp_path / "b.json")
    assert "expected a list" in only.reason


@pytest.mark.parametrize("data", [b"{", b"\xff", b"[" * 10_000, b"9" * 5000, b"", b"\0"])
def test_invalid_json_is_a_bad_record(data):
    with pytest.raises(BadRecord):
        parse_json(data)
