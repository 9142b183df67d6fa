"""Text-only pre-training of decoders, with which MM1 starts (section 3.3).

python -m mm1_jax.rehearse --config=llama2_7b --topology=v5p:4x4x4
"""

from collections.abc import Callable, Sequence

from experiments import mesh_rules, mixtures, pretrain, sizes
from mm1_jax.experiment import Experiment
from mm1_jax.models.decoder import Decoder
from mm1_jax.parallel.parallelism import MeshRule


def language_model(decoder: Decoder.Config, mesh_rules: Sequence[MeshRule]) -> Experiment.Config:
    """A text-only decoder with the batches and the schedule of MM1's pre-training."""
    cfg = pretrain.paper(sizes.language_model(decoder), mesh_rules)
    cfg.input.set(streams=mixtures.text(), max_images=0, image_group_rows=1, images_per_row=None)
    return cfg


def llama2_7b() -> Experiment.Config:
    """Llama 2 7B's shape on text with full recomputation, for comparison with other systems."""
    return language_model(sizes.decoder("7b"), mesh_rules.full_recomputation())


def named_configs() -> dict[str, Callable[[], Experiment.Config]]:
    return {"llama2_7b": llama2_7b}
