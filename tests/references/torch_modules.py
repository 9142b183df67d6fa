"""References that no installable package offers, written in torch's own modules.

AIM's trunk (arXiv 2401.08541), and Honeybee's C-Abstractor (arXiv 2312.06742) from timm's RegNet
block. Submodules have the names of the originals, without the levels that hold one child.
"""

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
    """Cell by cell, in float64 until the end: half of the dims for the column, half for the row."""

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


class LayerNorm2d(nn.LayerNorm):
    """timm's: over the channels at each place."""

    def __init__(self, channels: int):
        super().__init__(channels, eps=1e-6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvNormAct(nn.Module):
    def __init__(self, inputs: int, outputs: int, size: int = 1, groups: int = 1, act: bool = True):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, size, padding=size // 2, groups=groups, bias=False)
        self.bn = LayerNorm2d(outputs)
        self.act = nn.SiLU() if act else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.bn(self.conv(x)))


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int, squeezed: int):
        super().__init__()
        self.fc1 = nn.Conv2d(channels, squeezed, 1)
        self.fc2 = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate = self.fc2(F.silu(self.fc1(x.mean((2, 3), keepdim=True))))
        return x * torch.sigmoid(gate)


class Bottleneck(nn.Module):
    """RegNet's with timm's defaults: bottleneck ratio and group size 1, squeeze ratio 0.25."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.conv1 = ConvNormAct(inputs, outputs)
        self.conv2 = ConvNormAct(outputs, outputs, size=3, groups=outputs)
        self.se = SqueezeExcite(outputs, round(inputs * 0.25))
        self.conv3 = ConvNormAct(outputs, outputs, act=False)
        same = inputs == outputs
        self.downsample = nn.Identity() if same else ConvNormAct(inputs, outputs, act=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.silu(self.conv3(self.se(self.conv2(self.conv1(x)))) + self.downsample(x))


class HoneybeeCAbstractor(nn.Module):
    def __init__(
        self,
        inputs: int,
        hidden: int,
        outputs: int,
        grid: int,
        side: int,
        depth: int = 3,
        mlp_depth: int = 2,
    ):
        super().__init__()
        self.grid = grid
        self.pos_emb = nn.Parameter(torch.zeros(grid**2, inputs))

        def stage(channels: int) -> nn.Sequential:
            dims = [channels] + [hidden] * depth
            return nn.Sequential(
                *(Bottleneck(*pair) for pair in zip(dims[:-1], dims[1:], strict=True))
            )

        pool = nn.AdaptiveAvgPool2d(side)
        self.net = nn.Sequential(stage(inputs), pool, stage(hidden))
        layers = [nn.Linear(hidden if depth else inputs, outputs)]
        for _ in range(1, mlp_depth):
            layers += [nn.SiLU(), nn.Linear(outputs, outputs)]
        self.readout = nn.Sequential(*layers)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        x = (features + self.pos_emb).transpose(1, 2).unflatten(2, (self.grid, self.grid))
        return self.readout(self.net(x).flatten(2).transpose(1, 2))


def c_abstractor_weights(module: HoneybeeCAbstractor) -> Weights:
    weights = numpy_weights(module)

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

    def stage(number: int) -> dict:
        return {i: block(f"net.{number}.{i}") for i in range(len(module.net[number]))}

    read_out = [linear(weights, f"readout.{i}") for i in range(0, len(module.readout), 2)]
    return flat(
        {
            "positions": {"positions": weights["pos_emb"]},
            "stage_1": stage(0),
            "stage_2": stage(2),
            "read_out": dict(enumerate(read_out)),
        }
    )
