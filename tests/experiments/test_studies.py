"""Every study loads, and every launch of its stages and arms is a config that resolves."""

from pathlib import Path

import pytest

from mm1_jax.launch.launch import Launch
from mm1_jax.studies.study import load_study, module_of, studies

STUDIES = list(studies())


@pytest.mark.parametrize("name", STUDIES)
def test_the_configs_of_a_study_resolve(name):
    study = load_study(name)
    stages = {stage.name: Path("/nowhere", stage.name, "1") for stage in study.stages}
    for run in (*study.stages, *study.arms):
        overrides = run.overrides_of(1, stages)
        launch = Launch(run.config, module_of(study, run), overrides)
        cfg = launch.resolved_config()
        assert cfg.trainer.seed == int(overrides["trainer.seed"])
        assert cfg.input.seed == int(overrides["input.seed"])
        weights = cfg.trainer.initial_weights.values()
        folders = {str(stages[stage]) for stage in run.stages()}
        assert {weight.path for weight in weights} == folders


@pytest.mark.parametrize("name", STUDIES)
def test_arms_that_a_claim_compares_train_for_the_same_steps_on_the_same_records(name):
    study = load_study(name)

    def trained_on(name: str) -> tuple:
        arm = study.arm(name)
        stages = {stage.name: Path("/nowhere") for stage in study.stages}
        launch = Launch(arm.config, module_of(study, arm), arm.overrides_of(0, stages))
        cfg = launch.resolved_config()
        sources = [e.corpus.source.debug_string() for s in cfg.input.streams for e in s.corpora]
        return cfg.trainer.max_steps, cfg.input.batch_size, *sources

    for claim in study.claims:
        assert trained_on(claim.higher.arm) == trained_on(claim.lower.arm), claim.text
