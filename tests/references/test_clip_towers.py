"""Both towers of CLIP and SigLIP, their features and their loss, compared with transformers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from parity import (
    assert_equal,
    down,
    flat,
    join_heads,
    layer_norm,
    linear,
    numpy_weights,
    patch_kernel,
    randomise,
    split_heads,
    stacked,
    with_weights,
)
from transformers import CLIPConfig, CLIPModel, SiglipConfig, SiglipModel

from mm1_jax.layers.attention import Pattern
from mm1_jax.layers.feed_forward import Activation
from mm1_jax.layers.norm import LayerNorm
from mm1_jax.models.clip import CLIP
from mm1_jax.models.image_pooling import MAPPooling
from mm1_jax.models.text_encoder import TextPooling
from mm1_jax.models.vision_encoder import ClassToken
from mm1_jax.train.pair_losses import Comparison, Sigmoid, Softmax, pair_losses

DIM, HEADS, HIDDEN, LAYERS, PATCH, SIZE, LENGTH, EOS = 16, 2, 24, 2, 4, 8, 7, 29
TOWER = {
    "hidden_size": DIM,
    "intermediate_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
}
VISION = {**TOWER, "patch_size": PATCH, "image_size": SIZE}
TEXT = {**TOWER, "vocab_size": 30, "max_position_embeddings": LENGTH, "pad_token_id": 1}
LENGTHS = [7, 3, 5, 4]


@pytest.fixture
def cfg():
    """CLIP's towers; the dims are those of both kinds of model."""
    cfg = CLIP.default_config().set(features_dim=12)
    tower = {"model_dim": DIM, "num_layers": LAYERS, "num_heads": HEADS, "hidden_dim": HIDDEN}
    cfg.vision_encoder.set(image_size=SIZE, patch_size=PATCH, final_norm=None, **tower)
    cfg.text_encoder.set(vocab_size=30, max_length=LENGTH, **tower)
    return cfg


@pytest.fixture
def inputs():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (len(LENGTHS), SIZE, SIZE, 3), dtype=np.uint8)
    tokens = np.zeros((len(LENGTHS), LENGTH), np.int32)
    for row, length in zip(tokens, LENGTHS, strict=True):
        row[:length] = rng.integers(3, EOS, length)
        row[length - 1] = EOS
    return images, tokens, np.array(LENGTHS, np.int32)


def block(weights, name):
    norms = {"attention_norm": "layer_norm1", "feed_forward_norm": "layer_norm2"}
    heads = {"query": "q_proj", "key": "k_proj", "value": "v_proj"}
    attention = {
        ours: split_heads(weights, f"{name}.self_attn.{theirs}", DIM // HEADS)
        for ours, theirs in heads.items()
    }
    output = join_heads(weights, f"{name}.self_attn.out_proj", DIM // HEADS)
    return {
        "attention": {**attention, "output": output},
        "feed_forward": {
            "up": linear(weights, f"{name}.mlp.fc1"),
            "down": down(weights, f"{name}.mlp.fc2"),
        },
        **{ours: layer_norm(weights, f"{name}.{theirs}") for ours, theirs in norms.items()},
    }


def stack(weights, name):
    return {"layer": stacked([block(weights, f"{name}.encoder.layers.{i}") for i in range(LAYERS)])}


def text(weights, projection):
    return {
        "embedding": {"weight": weights["text_model.embeddings.token_embedding.weight"]},
        "positions": weights["text_model.embeddings.position_embedding.weight"],
        "stack": stack(weights, "text_model"),
        "final_norm": layer_norm(weights, "text_model.final_layer_norm"),
        "projection": linear(weights, projection),
    }


def pixels(cfg, images):
    mean, std = (torch.tensor(x) for x in (cfg.pixel_mean, cfg.pixel_std))
    return ((torch.from_numpy(images) / 255 - mean) / std).permute(0, 3, 1, 2)


@jax.jit
def features(model, images, tokens, lengths):
    return model.encode_image(images), model.encode_text(tokens, lengths)


def loss(rule, model, images, texts):
    real, ids = jnp.ones(len(images), bool), jnp.zeros((len(images), 2), jnp.uint32)
    bias = jnp.zeros(()) if model.logit_bias is None else model.logit_bias[...]
    losses = pair_losses(Comparison(rule), images, texts, model.scale(), bias, real, ids).losses
    return jnp.mean(losses)


def test_features_and_loss_equal_those_of_clip_in_transformers(cfg, inputs):
    images, tokens, lengths = inputs
    theirs = randomise(
        CLIPModel(
            CLIPConfig(
                projection_dim=12,
                text_config={**TEXT, "eos_token_id": EOS},
                vision_config=VISION,
                attn_implementation="eager",
            )
        )
    )
    weights = numpy_weights(theirs)
    cfg.vision_encoder.set(
        class_token=ClassToken.default_config(), pre_norm=LayerNorm.default_config().set(eps=1e-5)
    )
    cfg.vision_encoder.stack.layer.norm.eps = 1e-5
    for tower in (cfg.vision_encoder, cfg.text_encoder):
        tower.stack.layer.feed_forward.activation = Activation.QUICK_GELU
    cfg.initial_scale, cfg.max_scale = 1.0, None
    positions = weights["vision_model.embeddings.position_embedding.weight"]
    vision = "vision_model.embeddings"
    encoder = {
        "patch_embedding": {"kernel": patch_kernel(weights, f"{vision}.patch_embedding")},
        "positions": {"positions": positions[1:]},
        "class_token": {"token": weights[f"{vision}.class_embedding"], "position": positions[0]},
        "pre_norm": layer_norm(weights, "vision_model.pre_layrnorm"),
        "stack": stack(weights, "vision_model"),
    }
    ours = with_weights(
        cfg,
        flat(
            {
                "vision_encoder": encoder,
                "image_pooling": {"norm": layer_norm(weights, "vision_model.post_layernorm")},
                "image_projection": linear(weights, "visual_projection"),
                "text_encoder": text(weights, "text_projection"),
                "logit_scale": weights["logit_scale"],
            }
        ),
    )
    with torch.no_grad():
        expected = theirs(
            input_ids=torch.from_numpy(tokens).long(),
            pixel_values=pixels(cfg.vision_encoder, images),
            return_loss=True,
        )
    found = features(ours, images, tokens, lengths)
    assert_equal(found[0], expected.image_embeds)
    assert_equal(found[1], expected.text_embeds)
    np.testing.assert_allclose(loss(Softmax, ours, *found), expected.loss, rtol=1e-5)


def test_features_and_loss_equal_those_of_siglip_in_transformers(cfg, inputs):
    images, tokens, lengths = inputs
    theirs = randomise(
        SiglipModel(
            SiglipConfig(
                text_config={**TEXT, "projection_size": DIM},
                vision_config=VISION,
                attn_implementation="eager",
            )
        )
    )
    weights = numpy_weights(theirs)
    cfg.set(
        features_dim=DIM,
        image_projection=None,
        image_pooling=MAPPooling.default_config(),
        initial_bias=-10.0,
        initial_scale=10.0,
        max_scale=None,
    )
    cfg.vision_encoder.final_norm = LayerNorm.default_config()
    cfg.vision_encoder.patch_embedding.bias = True
    cfg.text_encoder.set(pooling=TextPooling.LAST, padding_token=1)
    cfg.text_encoder.projection.bias = True
    cfg.text_encoder.stack.layer.attention.pattern = Pattern.BIDIRECTIONAL
    cfg.text_encoder.stack.layer.norm.eps = cfg.text_encoder.final_norm.eps = 1e-6
    for part in (cfg.vision_encoder.stack.layer, cfg.text_encoder.stack.layer, cfg.image_pooling):
        part.feed_forward.activation = Activation.GELU_TANH
    head, vision = "vision_model.head", "vision_model.embeddings"
    for kind in ("weight", "bias"):
        parts = np.split(weights[f"{head}.attention.in_proj_{kind}"], 3)
        weights |= {f"{head}.{name}.{kind}": x for name, x in zip("qkv", parts, strict=True)}
    attention = {
        ours: split_heads(weights, f"{head}.{name}", DIM // HEADS)
        for ours, name in {"query": "q", "key": "k", "value": "v"}.items()
    }
    output = join_heads(weights, f"{head}.attention.out_proj", DIM // HEADS)
    ours = with_weights(
        cfg,
        flat(
            {
                "vision_encoder": {
                    "patch_embedding": {
                        "kernel": patch_kernel(weights, f"{vision}.patch_embedding"),
                        "bias": weights[f"{vision}.patch_embedding.bias"],
                    },
                    "positions": {"positions": weights[f"{vision}.position_embedding.weight"]},
                    "stack": stack(weights, "vision_model"),
                    "final_norm": layer_norm(weights, "vision_model.post_layernorm"),
                },
                "image_pooling": {
                    "query": weights[f"{head}.probe"][0, 0],
                    "attention": {**attention, "output": output},
                    "norm": layer_norm(weights, f"{head}.layernorm"),
                    "feed_forward": {
                        "up": linear(weights, f"{head}.mlp.fc1"),
                        "down": down(weights, f"{head}.mlp.fc2"),
                    },
                },
                "text_encoder": text(weights, "text_model.head"),
                "logit_scale": weights["logit_scale"][0],
                "logit_bias": weights["logit_bias"][0],
            }
        ),
    )
    padded = np.where(np.arange(LENGTH)[None] < lengths[:, None], tokens, 1)
    with torch.no_grad():
        expected = theirs(
            input_ids=torch.from_numpy(padded).long(),
            pixel_values=pixels(cfg.vision_encoder, images),
            return_loss=True,
        )
    found = features(ours, images, tokens, lengths)
    assert_equal(found[0], expected.image_embeds)
    assert_equal(found[1], expected.text_embeds)
    np.testing.assert_allclose(loss(Sigmoid, ours, *found), expected.loss, rtol=1e-5)
