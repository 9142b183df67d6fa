"""AIM's trunk (arXiv 2401.08541) in torch, and conversions of reference weights.

No installable package has AIM's first version. Submodules have the names of apple/ml-aim, without
the levels that hold one child; eps, biases and the exact GELU are those of aim-v1/aim/v1/torch.
"""

import re

import numpy as np
import torch
import torch.nn.functional as F
from parity import (
    Weights,
    down,
    flat,
    join_heads,
    layer_norm,
    linear,
    numpy_weights,
    patch_kernel,
    pointwise,
    split_heads,
    stacked,
)
from torch import nn


class AimTrunk(nn.Module):
    """Patches, their norm, sin-cos positions, blocks without biases, final norm."""

    def __init__(self, dim: int, depth: int, num_heads: int, patch_size: int):
        super().__init__()
        self.proj = nn.Conv2d(3, dim, patch_size, patch_size)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.blocks = nn.ModuleList(AimBlock(dim, num_heads) for _ in range(depth))
        self.post_trunk_norm = nn.LayerNorm(dim, eps=1e-6)

    def forward(self, pixels: torch.Tensor, prefixes: list[int] | None = None) -> torch.Tensor:
        x = self.proj(pixels)
        rows, columns = x.shape[2:]
        x = self.norm(x.flatten(2).transpose(1, 2))
        x = x + torch.from_numpy(sin_cos_positions(rows, columns, x.shape[-1]))
        mask = None if prefixes is None else prefix_causal(prefixes, rows * columns)
        for block in self.blocks:
            x = block(x, mask)
        return self.post_trunk_norm(x)


class AimBlock(nn.Module):
    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.norm_1 = nn.LayerNorm(dim, eps=1e-6)
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim, bias=False)
        self.norm_2 = nn.LayerNorm(dim, eps=1e-6)
        self.fc1 = nn.Linear(dim, 4 * dim, bias=False)
        self.fc2 = nn.Linear(4 * dim, dim, bias=False)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        heads = self.qkv(self.norm_1(x)).unflatten(2, (3, self.num_heads, -1))
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        x = x + self.proj(attended.transpose(1, 2).flatten(2))
        return x + self.fc2(F.gelu(self.fc1(self.norm_2(x))))


def sin_cos_positions(rows: int, columns: int, dim: int) -> np.ndarray:
    """Positions cell by cell in float64: half of the dims for the column, half for the row."""

    def of(place: int) -> list[float]:
        angles = [place / 10_000 ** (i / (dim / 4)) for i in range(dim // 4)]
        return [*np.sin(angles), *np.cos(angles)]

    return np.array([of(c) + of(r) for r in range(rows) for c in range(columns)], np.float32)


def prefix_causal(prefixes: list[int], length: int) -> torch.Tensor:
    masks = torch.ones(len(prefixes), 1, length, length, dtype=torch.bool).tril()
    for mask, prefix in zip(masks, prefixes, strict=True):
        mask[..., :prefix] = True
    return masks


def aim_weights(trunk: AimTrunk) -> Weights:
    weights = numpy_weights(trunk)

    def layer(name: str, block: AimBlock) -> dict:
        dim = block.proj.in_features
        head_dim = dim // block.num_heads
        qkv = weights[f"{name}.qkv.weight"].reshape(3, dim, dim)
        attention = {
            ours: split_heads({"heads.weight": matrix}, "heads", head_dim)
            for ours, matrix in zip(("query", "key", "value"), qkv, strict=True)
        }
        attention["output"] = join_heads(weights, f"{name}.proj", head_dim)
        return {
            "attention": attention,
            "attention_norm": layer_norm(weights, f"{name}.norm_1"),
            "feed_forward": {
                "up": linear(weights, f"{name}.fc1"),
                "down": down(weights, f"{name}.fc2"),
            },
            "feed_forward_norm": layer_norm(weights, f"{name}.norm_2"),
        }

    layers = [layer(f"blocks.{i}", block) for i, block in enumerate(trunk.blocks)]
    return flat(
        {
            "patch_embedding": {
                "kernel": patch_kernel(weights, "proj"),
                "bias": weights["proj.bias"],
            },
            "patch_norm": layer_norm(weights, "norm"),
            "stack": {"layer": stacked(layers)},
            "final_norm": layer_norm(weights, "post_trunk_norm"),
        }
    )


def aimv2_weights(model: nn.Module) -> Weights:
    """Converts the weights of an `Aimv2VisionModel` of transformers without a head."""
    weights = numpy_weights(model)

    def rms_norm(name: str) -> dict:
        return {"scale": weights[f"{name}.weight"]}

    def layer(name: str, block: nn.Module) -> dict:
        head_dim, attention = block.attention.head_dim, f"{name}.attention"
        projections = {"query": "q_proj", "key": "k_proj", "value": "v_proj"}
        return {
            "attention": {
                **{
                    ours: split_heads(weights, f"{attention}.{theirs}", head_dim)
                    for ours, theirs in projections.items()
                },
                "output": join_heads(weights, f"{attention}.out_proj", head_dim),
            },
            "attention_norm": rms_norm(f"{name}.rms_norm1"),
            "feed_forward": {
                "gate": linear(weights, f"{name}.ffn.gate_proj"),
                "up": linear(weights, f"{name}.ffn.up_proj"),
                "down": down(weights, f"{name}.ffn.down_proj"),
            },
            "feed_forward_norm": rms_norm(f"{name}.rms_norm2"),
        }

    layers = [layer(f"encoder.layers.{i}", each) for i, each in enumerate(model.encoder.layers)]
    return flat(
        {
            "patch_embedding": {
                "kernel": patch_kernel(weights, "embeddings.patch_embed"),
                "bias": weights["embeddings.patch_embed.bias"],
            },
            "patch_norm": rms_norm("embeddings.rms_norm"),
            "positions": {"positions": weights["embeddings.position_embedding.weight"]},
            "stack": {"layer": stacked(layers)},
            "final_norm": rms_norm("rms_norm"),
        }
    )


def c_abstractor_weights(weights: Weights) -> Weights:
    """Converts the weights of Honeybee's C-Abstractor, which have timm's names."""

    def conv_norm(name: str) -> dict:
        return {
            "linear": pointwise(weights, f"{name}.conv"),
            "norm": layer_norm(weights, f"{name}.bn"),
        }

    def block(name: str) -> dict:
        result = {
            "pointwise_in": conv_norm(f"{name}.conv1"),
            "depthwise": weights[f"{name}.conv2.conv.weight"][:, 0].transpose(1, 2, 0),
            "depthwise_norm": layer_norm(weights, f"{name}.conv2.bn"),
            "squeeze_excite": {
                "squeeze": pointwise(weights, f"{name}.se.fc1"),
                "excite": pointwise(weights, f"{name}.se.fc2"),
            },
            "pointwise_out": conv_norm(f"{name}.conv3"),
        }
        if f"{name}.downsample.conv.weight" in weights:
            result["shortcut"] = conv_norm(f"{name}.downsample")
        return result

    def numbers(pattern: str) -> list[int]:
        found = (re.match(pattern, name) for name in weights)
        return sorted({int(match[1]) for match in found if match})

    def stage(number: int) -> dict:
        name = f"net.{number}.b"
        return {i - 1: block(f"{name}{i}") for i in numbers(rf"net\.{number}\.b(\d+)\.")}

    read_out = [linear(weights, f"readout.{i}") for i in numbers(r"readout\.(\d+)\.")]
    return flat(
        {
            "positions": {"positions": weights["pos_emb"][0]},
            "stage_1": stage(0),
            "stage_2": stage(2),
            "read_out": dict(enumerate(read_out)),
        }
    )
