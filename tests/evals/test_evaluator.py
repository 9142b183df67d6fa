import pytest

from mm1_jax.config import config_class
from mm1_jax.evals.evaluator import EvalResult, Evaluator, EveryNSteps


def steps(n: int, max_steps: int) -> list[int]:
    schedule = EveryNSteps.default_config().set(n=n).instantiate()
    return [step for step in range(max_steps + 1) if schedule.due(step, max_steps)]


def test_every_n_steps_includes_the_last_step_and_excludes_the_first():
    assert steps(4, 10) == [4, 8, 10]
    assert steps(5, 10) == [5, 10]


def test_without_n_only_the_last_step_is_due():
    assert steps(0, 10) == [10]


def test_a_negative_number_is_refused():
    with pytest.raises(ValueError, match="n=-1: expected at least 0"):
        steps(-1, 10)


def test_an_evaluator_is_due_according_to_its_config(input):
    class Constant(Evaluator):
        @config_class
        class Config(Evaluator.Config):
            value: float = 0.5

        def run(self, model):
            return EvalResult({"constant/0/value": self.config.value})

    cfg = Constant.default_config()
    cfg.run.n = 3
    evaluator = cfg.instantiate(input=input)
    assert [evaluator.due(step, 10) for step in (3, 4, 6, 10)] == [True, False, True, True]
    assert evaluator.run(None).metrics == {"constant/0/value": 0.5}
    assert evaluator.run(None).samples == []
