import jax
import pytest

from experiments.pretrain import mm1_tiny
from mm1_jax.experiment import Experiment
from mm1_jax.models.flops import forward_flops


def shapes(batch):
    leaves = jax.tree_util.tree_leaves_with_path(batch)
    return {jax.tree_util.keystr(path): (x.shape, x.dtype) for path, x in leaves}


@pytest.mark.parametrize("fields", [{}, {"image_group_rows": 4, "images_per_row": 6.5}], ids=str)
def test_batches_have_the_shapes_that_the_step_is_compiled_for(fields, with_few_records):
    cfg = mm1_tiny()
    with_few_records(cfg.input.streams)
    cfg.input.set(prefetch=0, **fields)
    cfg = Experiment.resolve(cfg)
    batches = cfg.input.instantiate().iterator()
    try:
        assert shapes(next(batches)) == shapes(Experiment.objective(cfg).batch)
    finally:
        batches.close()


def test_an_objective_reports_rows_and_flops():
    cfg = Experiment.resolve(mm1_tiny())
    objective = Experiment.objective(cfg)
    assert objective.num_rows == cfg.input.batch_size
    assert objective.flops() == forward_flops(cfg.model, cfg.input.max_sequence_length)


def test_the_flops_of_other_models_are_unknown(fakes):
    with pytest.raises(ValueError, match="model FLOPs: no rule for BigramModel"):
        fakes.objective().flops()
