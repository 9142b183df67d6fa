import jax
import pytest
from etils import epath

from experiments.pretrain import mm1_tiny
from mm1_jax.checkpoints.model_identity import raise_if_another_model
from mm1_jax.stored_config import flat_fields


def shapes(**sizes):
    return {"decoder": {name: jax.ShapeDtypeStruct(s, "float32") for name, s in sizes.items()}}


def compare(saved, here, saved_model=None, model=None, stored=flat_fields):
    raise_if_another_model(
        epath.Path("/run/checkpoints/20"),
        saved_params=saved,
        params=here,
        saved_config=None if saved_model is None else stored(saved_model),
        model=model,
    )


def test_shapes_that_differ_are_listed_by_path():
    compare(shapes(head=(2, 3)), shapes(head=(2, 3)))
    with pytest.raises(ValueError) as error:
        compare(shapes(head=(2, 3), bias=(3,)), shapes(head=(2, 4)))
    assert str(error.value).splitlines() == [
        "the checkpoint /run/checkpoints/20 is of another model (saved -> now):",
        "  decoder/bias: (3,) -> absent",
        "  decoder/head: (2, 3) -> (2, 4)",
    ]


def test_at_most_twelve_differences_are_listed():
    with pytest.raises(ValueError, match="and 8 more$"):
        compare(shapes(**{f"x{i}": (1,) for i in range(20)}), shapes())


@pytest.mark.parametrize("stored", [flat_fields, lambda cfg: cfg.debug_string().splitlines()])
def test_model_fields_without_shapes_are_compared_and_launch_fields_are_not(stored):
    model = mm1_tiny().model
    other = model.clone(dtype="bfloat16", image_group_rows=4)
    compare(shapes(), shapes(), model, other, stored)
    # A checkpoint without its config is not compared by it.
    compare(shapes(), shapes(), None, other)
    other.decoder.stack.layer.attention.rotary.theta = 5.0
    with pytest.raises(ValueError, match=r"model\.decoder\.stack\.layer\.attention\.rotary\.theta"):
        compare(shapes(), shapes(), model, other, stored)
