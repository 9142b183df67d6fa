"""Weights of Hugging Face models, under the names and in the shapes of ours.

They are read from the state dict of a built model. Its rotary pairs are ours, (i, i + H/2).
"""

import torch
from parity import (
    Weights,
    down,
    flat,
    join_heads,
    layer_norm,
    linear,
    numpy_weights,
    patch_kernel,
    rms_norm,
    split_heads,
    stacked,
)


def clip_vision_weights(model: torch.nn.Module) -> Weights:
    """Of a CLIPVisionModel, all but the norm after its last block, which only its class token sees.

    The class token's own position becomes part of its value.
    """
    weights, config = numpy_weights(model), model.config
    head_dim = config.hidden_size // config.num_attention_heads

    def layer(name: str) -> dict:
        attention = {
            ours: split_heads(weights, f"{name}.self_attn.{theirs}_proj", head_dim)
            for ours, theirs in (("query", "q"), ("key", "k"), ("value", "v"))
        }
        attention["output"] = join_heads(weights, f"{name}.self_attn.out_proj", head_dim)
        return {
            "attention": attention,
            "attention_norm": layer_norm(weights, f"{name}.layer_norm1"),
            "feed_forward": {
                "up": linear(weights, f"{name}.mlp.fc1"),
                "down": down(weights, f"{name}.mlp.fc2"),
            },
            "feed_forward_norm": layer_norm(weights, f"{name}.layer_norm2"),
        }

    positions = weights["embeddings.position_embedding.weight"]
    layers = [layer(f"encoder.layers.{i}") for i in range(config.num_hidden_layers)]
    return flat(
        {
            "patch_embedding": {"kernel": patch_kernel(weights, "embeddings.patch_embedding")},
            "class_token": {"token": weights["embeddings.class_embedding"] + positions[0]},
            "positions": {"positions": positions[1:]},
            "pre_norm": layer_norm(weights, "pre_layrnorm"),
            "stack": {"layer": stacked(layers)},
        }
    )


def decoder_weights(model: torch.nn.Module) -> Weights:
    """Of a LlamaForCausalLM, or of a MixtralForCausalLM, all of whose layers are sparse."""
    weights, config = numpy_weights(model), model.config
    head_dim = config.head_dim or config.hidden_size // config.num_attention_heads

    def feed_forward(name: str) -> dict:
        if f"{name}.gate.weight" not in weights:
            into = {ours: linear(weights, f"{name}.{ours}_proj") for ours in ("gate", "up")}
            return {**into, "down": down(weights, f"{name}.down_proj")}
        gate_up = weights[f"{name}.experts.gate_up_proj"].swapaxes(1, 2)
        experts = {
            "gate": gate_up[..., : config.intermediate_size],
            "up": gate_up[..., config.intermediate_size :],
            "down": weights[f"{name}.experts.down_proj"],
        }
        return {"router": weights[f"{name}.gate.weight"].T, "experts": experts}

    def layer(name: str) -> dict:
        attention = {
            ours: split_heads(weights, f"{name}.self_attn.{theirs}_proj", head_dim)
            for ours, theirs in (("query", "q"), ("key", "k"), ("value", "v"))
        }
        attention["output"] = join_heads(weights, f"{name}.self_attn.o_proj", head_dim)
        return {
            "attention": attention,
            "attention_norm": rms_norm(weights, f"{name}.input_layernorm"),
            "feed_forward": feed_forward(f"{name}.mlp"),
            "feed_forward_norm": rms_norm(weights, f"{name}.post_attention_layernorm"),
        }

    layers = [layer(f"model.layers.{i}") for i in range(config.num_hidden_layers)]
    return flat(
        {
            "embedding": {"weight": weights["model.embed_tokens.weight"]},
            "stack": {"layer": stacked(layers)},
            "norm": rms_norm(weights, "model.norm"),
            "head": {"weight": weights["lm_head.weight"]},
        }
    )
