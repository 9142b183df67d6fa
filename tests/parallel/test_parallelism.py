"""Meshes, and mesh rules that choose a parallelism by kind and number of devices."""

from types import SimpleNamespace

import jax
import pytest

from experiments.sizes import tiny
from mm1_jax.models.clip import CLIP
from mm1_jax.parallel.parallelism import (
    MeshRule,
    Parallelism,
    choose,
    device_kind,
    devices_name,
    mesh_shape,
)
from mm1_jax.parallel.rematerialisation import Remat


def _parallelism(**axes: int) -> Parallelism.Config:
    return Parallelism.default_config().set(**axes)


def _mesh(**axes: int) -> jax.sharding.Mesh:
    return _parallelism(**axes).instantiate().mesh()


def _devices(kind: str, number: int, slices: int = 1) -> list:
    return [SimpleNamespace(device_kind=kind, slice_index=n % slices) for n in range(number)]


def test_a_mesh_has_only_the_axes_in_use_in_canonical_order():
    mesh = _mesh(model=2, data=2, fsdp=2)
    assert mesh.axis_names == ("data", "fsdp", "model")
    assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "model": 2}
    assert mesh_shape(_parallelism(expert=4), num_devices=8) == {"data": 2, "expert": 4}
    assert mesh_shape(_parallelism(fsdp=-1), num_devices=8) == {"fsdp": 8}
    assert mesh_shape(_parallelism(), num_devices=1) == {}


@pytest.mark.parametrize(
    "axes, message",
    [
        ({"data": -1, "fsdp": -1}, "only one axis may be -1, got data and fsdp"),
        ({"model": 0}, "positive or -1"),
        ({"model": 3}, "do not fit 8 devices"),
        ({"data": 2, "model": 2}, "do not fit 8 devices"),
    ],
)
def test_axes_that_do_not_fit_the_devices_are_errors(axes, message):
    with pytest.raises(ValueError, match=message):
        mesh_shape(_parallelism(**axes), num_devices=8)


def test_each_slice_holds_all_parameters_unless_data_is_set():
    assert mesh_shape(_parallelism(fsdp=-1), num_devices=8, num_slices=2) == {"data": 2, "fsdp": 4}
    assert mesh_shape(_parallelism(fsdp=-1, data=1), num_devices=8, num_slices=2) == {"fsdp": 8}
    assert mesh_shape(_parallelism(fsdp=2), num_devices=8, num_slices=2) == {"data": 4, "fsdp": 2}


def test_a_rule_matches_any_number_of_slices_unless_it_names_one():
    rules = [
        MeshRule().set(devices=r"\d+xv5p-128", parallelism=_parallelism(expert=2)),
        MeshRule().set(devices="v5p-128", parallelism=_parallelism(expert=4)),
        MeshRule().set(devices="v5p-64", parallelism=_parallelism(expert=8)),
    ]
    nothing = Parallelism.default_config()
    assert devices_name(_devices("TPU v5", 128, slices=2)) == "2xv5p-128"
    assert choose(rules, nothing, "2xv5p-128") == _parallelism(expert=2)
    assert choose(rules, nothing, "v5p-128") == _parallelism(expert=4)
    assert choose(rules, nothing, "2xv5p-64") == _parallelism(expert=8)
    assert choose(rules, nothing, "2xv5p-32") is nothing


@pytest.mark.parametrize(
    ("device", "kind"),
    [
        ("TPU v4", "v4"),
        ("TPU v5 lite", "v5e"),
        ("TPU v5", "v5p"),
        ("TPU v5p", "v5p"),
        ("TPU v6 lite", "v6e"),
        ("TPU7x", "tpu7x"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H200", "h200"),
        ("cpu", "cpu"),
        ("Quantum 1", "Quantum 1"),
    ],
)
def test_devices_have_short_names(device, kind):
    assert device_kind(*_devices(device, 1)) == kind


def test_the_first_matching_rule_applies_and_explicit_fields_override_it():
    rules = [
        MeshRule().set(devices="v5p-(64|128)", parallelism=_parallelism(fsdp=-1, model=2)),
        MeshRule().set(devices="v5p-.*", parallelism=_parallelism(fsdp=-1)),
    ]
    nothing = Parallelism.default_config()
    assert devices_name(_devices("TPU v5", 64)) == "v5p-64"
    assert choose(rules, nothing, "v5p-64") == _parallelism(fsdp=-1, model=2)
    assert choose(rules, nothing, "v5p-32") == _parallelism(fsdp=-1)
    # "v5p-640" must not match "v5p-64".
    assert choose(rules, nothing, "v5p-640") == _parallelism(fsdp=-1)
    chosen = choose(rules, _parallelism(model=4), "v5p-64")
    assert chosen == _parallelism(fsdp=-1, model=4)
    assert choose(rules, _parallelism(data=8), "cpu-8") == _parallelism(data=8)


def test_the_parallelism_sets_remat_and_saved_names_of_the_model():
    model = tiny()
    cfg = Parallelism.default_config().set(
        decoder_saved_names=("query",), vision_encoder_remat=Remat.NONE
    )
    configured = cfg.instantiate().configure(model)
    assert configured.decoder.stack.saved_names == ("query",)
    assert configured.decoder.stack.remat is Remat.FULL
    assert configured.vision_encoder.stack.remat is Remat.NONE
    assert model.vision_encoder.stack.remat is Remat.FULL


def test_the_parallelism_sets_remat_of_a_text_tower():
    model = CLIP.default_config()
    cfg = Parallelism.default_config().set(text_encoder_remat=Remat.DOTS)
    configured = cfg.instantiate().configure(model)
    assert configured.text_encoder.stack.remat is Remat.DOTS
    assert configured.vision_encoder == model.vision_encoder


def test_bad_fields_are_named():
    with pytest.raises(ValueError, match="gradient_accumulation=0: expected at least 1"):
        _parallelism(gradient_accumulation=0).instantiate()
    with pytest.raises(ValueError, match="'xla_flag' is not of the form name=value"):
        Parallelism.default_config().set(compiler_options=("xla_flag",)).instantiate()
    options = Parallelism.default_config().set(compiler_options=("a=1", "b=x=y"))
    assert options.instantiate().compiler_options == {"a": "1", "b": "x=y"}
