"""Parameter counts of the full-size models, compared with transformers and published figures."""

import jax
import pytest
import torch
from flax import nnx
from transformers import CLIPConfig, CLIPModel

from experiments.encoders import clip_vit_h14, clip_vit_h14_378, clip_vit_l14, clip_vit_l14_336


def tower(dim, num_layers, num_heads, **fields):
    return {
        "hidden_size": dim,
        "num_hidden_layers": num_layers,
        "num_attention_heads": num_heads,
        "intermediate_size": 4 * dim,
        **fields,
    }


@pytest.mark.parametrize(
    ("configs", "vision", "text", "millions"),
    [
        ((clip_vit_l14, clip_vit_l14_336), (1024, 24, 16), (768, 12, 12), 427.6),
        ((clip_vit_h14, clip_vit_h14_378), (1280, 32, 16), (1024, 24, 16), 986.1),
    ],
)
def test_clip_models_have_as_many_parameters_as_published(configs, vision, text, millions):
    for make in configs:
        model = make().model
        model.text_encoder.set(vocab_size=49_408, max_length=77)
        params = nnx.state(nnx.eval_shape(lambda: model.instantiate(rngs=nnx.Rngs(params=0))))  # noqa: B023
        ours = sum(x.size for x in jax.tree.leaves(params))
        size = {"image_size": model.vision_encoder.image_size, "patch_size": 14}
        config = CLIPConfig(
            projection_dim=text[0],
            text_config=tower(*text),
            vision_config=tower(*vision, **size),
        )
        with torch.device("meta"):
            assert ours == sum(x.numel() for x in CLIPModel(config).parameters())
        if size["image_size"] == 224:
            assert ours == pytest.approx(millions * 1e6, rel=2e-4)
