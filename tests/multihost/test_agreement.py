import itertools

import pytest

from mm1_jax.config import Configurable, config_class
from mm1_jax.multihost import agreement
from mm1_jax.multihost.agreement import config_facts, described, differences, host_facts
from mm1_jax.stored_config import flat_fields


def told(*processes):
    """Returns the error of processes with these facts."""
    return described([differences(processes[0], facts) for facts in processes])


def test_a_difference_is_named_with_processes_and_values():
    facts = {"trainer.seed": "0", "version of jax": "0.10.2"}
    text = told(facts, facts, facts | {"trainer.seed": "1"}, facts)
    assert text.splitlines()[1:] == ["  trainer.seed: 0 in processes 0-1, 3; 1 in process 2"]


def test_the_first_process_may_be_the_different_one():
    assert "  a: 1 in process 0; 2 in processes 1-3" in told({"a": "1"}, *[{"a": "2"}] * 3)


def test_a_missing_fact_is_reported_as_not_set():
    assert "  b: not set in process 0; 2 in process 1" in told({}, {"b": "2"})
    assert "  b: 2 in process 0; not set in process 1" in told({"b": "2"}, {})


def test_many_and_long_differences_are_truncated():
    first = {f"field{i:03}": "x" * 1000 for i in range(100)}
    own = {name: value + "y" for name, value in first.items()}
    answer = differences(first, own)
    assert len(answer["facts"]) == 20 and answer["more"] == 80
    text = told(first, own)
    assert "and 80 more" in text and len(text) < 20_000
    # Values with a common beginning are cut so that they still differ.
    assert all(a != b for a, b in answer["facts"].values())


class Part(Configurable):
    @config_class
    class Config(Configurable.Config):
        num_workers: int = 0
        prefetch: int = 2
        data_dir: str = "data"
        seed: int = 0
        path: str = "x"


class Root(Configurable):
    @config_class
    class Config(Configurable.Config):
        input: Part.Config = Part.default_config()
        trainer: Part.Config = Part.default_config()


def test_only_data_paths_and_reading_speed_may_differ():
    def facts(**fields):
        cfg = Root.default_config()
        for name, value in fields.items():
            setattr(cfg.input, name, value)
        return config_facts(flat_fields(cfg))

    for field in ("num_workers", "prefetch"):
        assert facts(**{field: 5}) == facts()
    assert facts(data_dir="elsewhere", path="y") == facts()
    assert facts(seed=1) != facts()
    # Fields with the same name elsewhere must agree.
    assert "trainer.num_workers" in facts()


def test_each_field_of_a_real_config_is_compared_or_exempt():
    from experiments.pretrain import named_configs

    cfg = named_configs()["mm1_3b"]()
    fields = flat_fields(cfg)
    left_out = fields.keys() - config_facts(fields).keys()
    for path in left_out:
        assert path.rpartition(".")[2] in agreement.NAMES_MAY_DIFFER or path.startswith(
            agreement.FIELDS_MAY_DIFFER
        ), path
    assert {"trainer.max_steps", "input.batch_size"} <= config_facts(fields).keys()


@pytest.mark.parametrize(
    ("variable", "value", "fact"),
    [
        ("XLA_FLAGS", "--xla_a=1 --xla_dump_to=/tmp/0", {"XLA_FLAGS --xla_a": "1"}),
        ("LIBTPU_INIT_ARGS", "--xla_tpu_b", {"LIBTPU_INIT_ARGS --xla_tpu_b": "set"}),
    ],
)
def test_compiler_flags_are_compared_except_output_paths(monkeypatch, variable, value, fact):
    monkeypatch.setenv(variable, "")
    before = host_facts()
    monkeypatch.setenv(variable, value)
    after = host_facts()
    assert {name: x for name, x in after.items() if before.get(name) != x} == fact


def test_code_is_compared_by_content(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    module = tmp_path / "own_config_of_a_user.py"
    facts = []
    for text in ("x = 1\n", "x = 2\n"):
        module.write_text(text)
        __import__(module.stem)
        facts.append(host_facts())
    assert facts[0].keys() == facts[1].keys()
    differing = [name for name in facts[0] if facts[0][name] != facts[1][name]]
    assert differing == [f"code of {module.stem}"]


def test_versions_and_options_that_affect_numbers_are_compared():
    facts = host_facts()
    for package in ("jax", "jaxlib", "numpy", "grain", "flax", "optax", "orbax-checkpoint"):
        assert facts[f"version of {package}"][0].isdigit()
    for option in ("jax_enable_x64", "jax_default_matmul_precision", "jax_threefry_partitionable"):
        assert f"option of JAX {option}" in facts
    assert not any("cache_dir" in name for name in facts)


def test_processes_that_agree_exchange_only_digests(monkeypatch):
    """Processes that disagree also exchange the differences, once."""
    sent = []

    class Distributed:
        """Process 1 of two, with known messages of the other."""

        def __init__(self, other):
            self.other = other
            self.calls = itertools.count()

        def process_count(self):
            return 2

        def exchange(self, value):
            sent.append(value)
            theirs = {k: str(v) for k, v in self.other.items()}
            if next(self.calls) == 0:
                return [agreement.digest_of(theirs), value]
            return [differences(theirs, theirs), value]

        def broadcast(self, value):
            return {k: str(v) for k, v in self.other.items()}

    facts = {"a": 1, "b": 2}
    monkeypatch.setattr(agreement, "distributed", Distributed(facts))
    agreement.agree(facts)
    assert len(sent) == 1 and len(sent[0]) == 64
    monkeypatch.setattr(agreement, "distributed", Distributed(facts | {"b": 3}))
    with pytest.raises(ValueError, match="b: 3 in process 0; 2 in process 1"):
        agreement.agree(facts)
