import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from mm1_jax.layers.moe import MoE
from mm1_jax.models.connectors.average_pooling import AveragePooling
from mm1_jax.models.flops import (
    connector_flops,
    decoder_flops,
    forward_flops,
    product_flops,
    vision_encoder_flops,
)
from mm1_jax.models.mm1 import MM1
from mm1_jax.models.vision_encoder import ClassToken

T, D, F, V = 32, 16, 48, 64


@pytest.fixture
def cfg():
    cfg = MM1.default_config().set(image_token=4)
    cfg.vision_encoder.set(
        image_size=24, patch_size=8, model_dim=8, num_layers=2, num_heads=2, hidden_dim=24
    )
    cfg.connector.set(num_image_tokens=4, depth=1, hidden_dim=8)
    cfg.decoder.set(
        model_dim=D, num_layers=4, num_heads=4, num_kv_heads=2, hidden_dim=F, vocab_size=V
    )
    return cfg


def traced(cfg, function, *shapes):
    """Counts the FLOPs of all matrix products in the traced call."""
    module = nnx.eval_shape(lambda: cfg.instantiate(rngs=nnx.Rngs(params=0)))
    return product_flops(jax.make_jaxpr(function)(module, *shapes).jaxpr)


def test_decoder_flops_are_its_products_and_half_of_its_attention(cfg):
    numbers = jax.ShapeDtypeStruct((1, T), jnp.int32)
    states = jax.ShapeDtypeStruct((1, T, D), jnp.float32)

    def forward(decoder, embeddings, numbers):
        output = decoder(embeddings, positions=numbers, segment_ids=numbers)
        return decoder.logits(output.hidden)

    upper_half = cfg.decoder.num_layers * 2 * T**2 * D
    executed = traced(cfg.decoder, forward, states, numbers)
    assert decoder_flops(cfg.decoder, T) == executed - upper_half


@pytest.mark.parametrize("class_token", [None, ClassToken.default_config()])
def test_vision_encoder_flops_are_its_products(cfg, class_token):
    cfg.vision_encoder.class_token = class_token
    image = jax.ShapeDtypeStruct((1, 24, 24, 3), jnp.float32)
    executed = traced(cfg.vision_encoder, lambda encoder, x: encoder(x), image)
    assert vision_encoder_flops(cfg.vision_encoder) == executed


def test_counted_products_agree_with_xla(cfg):
    cfg.vision_encoder.set(model_dim=64, hidden_dim=256)
    cfg.vision_encoder.stack.unroll = True
    module = nnx.eval_shape(lambda: cfg.vision_encoder.instantiate(rngs=nnx.Rngs(params=0)))
    image = jax.ShapeDtypeStruct((1, 24, 24, 3), jnp.float32)
    cost = jax.jit(lambda encoder, x: encoder(x)).lower(module, image).cost_analysis()
    # XLA also counts norms, activations and the softmax.
    assert 1 < cost["flops"] / vision_encoder_flops(cfg.vision_encoder) < 1.2


def test_flops_of_a_sparse_layer_include_the_router_and_the_experts_of_a_token(cfg):
    dense = decoder_flops(cfg.decoder, T)
    cfg.decoder.set(moe=MoE.default_config().set(num_experts=8, experts_per_token=2), moe_every=2)
    sparse_layers = 2
    extra = sparse_layers * 2 * T * (3 * D * F + D * 8)
    assert decoder_flops(cfg.decoder, T) == dense + extra
    cfg.decoder.moe.num_experts = 16
    assert decoder_flops(cfg.decoder, T) == dense + extra + sparse_layers * 2 * T * D * 8


def test_tying_the_output_layer_does_not_change_the_flops(cfg):
    assert decoder_flops(cfg.decoder, T) == decoder_flops(cfg.decoder.set(tied_embeddings=True), T)


def test_flops_of_any_connector_are_its_products(cfg):
    cfg.connector = AveragePooling.default_config().set(num_image_tokens=4)
    projection = 2 * 4 * 8 * D
    assert projection <= connector_flops(cfg) < 1.5 * projection


def test_training_flops_count_the_actual_images(cfg):
    flops = forward_flops(cfg, T)
    assert flops.of_training(2, 0) == 3 * 2 * flops.row
    assert flops.of_training(2, 5) == 3 * (2 * flops.row + 5 * flops.image)


def test_a_text_only_model_has_the_flops_of_its_decoder(cfg):
    flops = forward_flops(cfg.set(vision_encoder=None, connector=None), T)
    assert (flops.row, flops.image) == (decoder_flops(cfg.decoder, T), 0)
