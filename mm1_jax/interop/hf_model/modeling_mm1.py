"""MM1 in PyTorch, as mm1_jax trains it: vision encoder, connector, decoder (arXiv 2403.09611).

Needs torch and transformers, but not mm1_jax. Parameters have the same names as in mm1_jax, with
the layer index in the path and matrices as `torch.nn.Linear` stores them.

Legend: B rows, T positions, S positions of the cache, J images, P patches, M tokens per image,
D model dim, N heads, K key and value heads, H head dim, E experts.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache
from transformers.modeling_outputs import CausalLMOutputWithPast

from .configuration_mm1 import MM1Config

CACHE_NAME = "cache"
if CACHE_NAME not in CausalLMOutputWithPast.__dataclass_fields__:
    CACHE_NAME = "past_key_values"

ACTIVATIONS = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "silu": F.silu,
}


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight, in float32."""

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        x32 = x.float()
        y = x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + self.eps)
        return (y * self.weight.float()).to(x.dtype)


class LayerNorm(nn.Module):
    """(x - mean) / sqrt(var + eps) * weight + bias, in float32."""

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight.float(), self.bias.float()
        return F.layer_norm(x.float(), x.shape[-1:], weight, bias, self.eps).to(x.dtype)


def make_norm(dim: int, settings: dict[str, Any]) -> nn.Module:
    kind = {"rms_norm": RMSNorm, "layer_norm": LayerNorm}[settings["kind"]]
    return kind(dim, settings["eps"])


def rotate(x: Tensor, positions: Tensor, settings: dict[str, Any]) -> Tensor:
    """Rotates pairs (i, i + H/2) of BNTH by angles proportional to positions (BT), in float32."""
    half = x.shape[-1] // 2
    exponents = torch.arange(half, dtype=torch.float32, device=x.device) / half
    frequencies = settings["theta"] ** -exponents
    if "factor" in settings:
        low, high = settings["low_freq_factor"], settings["high_freq_factor"]
        length = settings["original_max_position_embeddings"]
        turns = frequencies * (length / (2 * math.pi))
        kept = ((turns - low) / (high - low)).clamp(0, 1)
        frequencies = frequencies * (kept + (1 - kept) / settings["factor"])
    angles = positions[:, None, :, None].float() * frequencies
    cos, sin = angles.cos(), angles.sin()
    first, second = x.float().split(half, dim=-1)
    turned = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
    return turned.to(x.dtype)


class Attention(nn.Module):
    """Grouped-query self-attention, or cross-attention to `source`."""

    def __init__(self, settings: dict[str, Any], layer: int = 0):
        super().__init__()
        dim, source_dim = settings["input_dim"], settings["source_dim"]
        heads, kv_heads = settings["num_heads"], settings["num_kv_heads"]
        self.head_dim = head_dim = settings["head_dim"]
        bias = settings["bias"]
        self.query = nn.Linear(dim, heads * head_dim, bias=bias)
        self.key = nn.Linear(source_dim, kv_heads * head_dim, bias=bias)
        self.value = nn.Linear(source_dim, kv_heads * head_dim, bias=bias)
        self.output = nn.Linear(heads * head_dim, dim, bias=settings["output_bias"])
        norm = settings["qk_norm"]
        self.query_norm = make_norm(head_dim, norm) if norm else nn.Identity()
        self.key_norm = make_norm(head_dim, norm) if norm else nn.Identity()
        self.rotary = settings["rotary"]
        self.groups = heads // kv_heads
        self.layer = layer

    def forward(
        self,
        x: Tensor,
        source: Tensor | None = None,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        source = x if source is None else source
        query = self.query(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        key, value = (
            linear(source).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for linear in (self.key, self.value)
        )
        query, key = self.query_norm(query), self.key_norm(key)
        if self.rotary:
            query = rotate(query, positions, self.rotary)
            key = rotate(key, positions, self.rotary)
        if cache is not None:
            key, value = cache.update(key, value, self.layer)
        key, value = (y.repeat_interleave(self.groups, dim=1) for y in (key, value))
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return self.output(attended.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """down(activation(up(x))), or down(activation(gate(x)) * up(x))."""

    def __init__(self, dim: int, settings: dict[str, Any]):
        super().__init__()
        hidden, bias = settings["hidden_dim"], settings["bias"]
        self.gate = nn.Linear(dim, hidden, bias=bias) if settings["is_gated"] else None
        self.up = nn.Linear(dim, hidden, bias=bias)
        self.down = nn.Linear(hidden, dim, bias=bias)
        self.activation = ACTIVATIONS[settings["activation"]]

    def forward(self, x: Tensor) -> Tensor:
        if self.gate is None:
            return self.down(self.activation(self.up(x)))
        return self.down(self.activation(self.gate(x)) * self.up(x))


class Experts(nn.Module):
    """Kernels of E gated feed-forward layers: [E, D, F] each."""

    def __init__(self, dim: int, hidden: int, count: int):
        super().__init__()
        self.gate = nn.Parameter(torch.zeros(count, dim, hidden))
        self.up = nn.Parameter(torch.zeros(count, dim, hidden))
        self.down = nn.Parameter(torch.zeros(count, dim, hidden))


class MixtureOfExperts(nn.Module):
    """Weighted sum of each token's top experts; weights sum to one, and no token is dropped."""

    def __init__(self, dim: int, settings: dict[str, Any]):
        super().__init__()
        self.router = nn.Linear(dim, settings["num_experts"], bias=False)
        self.experts = Experts(dim, settings["hidden_dim"], settings["num_experts"])
        self.experts_per_token = settings["experts_per_token"]
        self.activation = ACTIVATIONS[settings["activation"]]

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(0, -2)
        logits = tokens.float() @ self.router.weight.float().T
        weights, chosen = logits.softmax(-1).topk(self.experts_per_token, dim=-1)
        weights = weights / weights.sum(-1, keepdim=True)
        result = torch.zeros_like(tokens)
        for expert in chosen.unique().tolist():
            rows, place = torch.where(chosen == expert)
            inputs = tokens[rows]
            hidden = self.activation(inputs @ self.experts.gate[expert])
            hidden = hidden * (inputs @ self.experts.up[expert])
            hidden = (hidden.float() * weights[rows, place, None]).to(x.dtype)
            result.index_add_(0, rows, hidden @ self.experts.down[expert].T)
        return result.view_as(x)


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x))."""

    def __init__(self, settings: dict[str, Any], layer: int = 0):
        super().__init__()
        dim, feed_forward = settings["attention"]["input_dim"], settings["feed_forward"]
        self.attention_norm = make_norm(dim, settings["norm"])
        self.attention = Attention(settings["attention"], layer)
        self.feed_forward_norm = make_norm(dim, settings["norm"])
        is_sparse = "num_experts" in feed_forward
        self.feed_forward = (MixtureOfExperts if is_sparse else FeedForward)(dim, feed_forward)

    def forward(self, x: Tensor, **attention: Any) -> Tensor:
        x = x + self.attention(self.attention_norm(x), **attention)
        return x + self.feed_forward(self.feed_forward_norm(x))


class Positions(nn.Module):
    """A learned vector per grid cell, resized for grids of other sizes."""

    def __init__(self, grid_size: int, dim: int):
        super().__init__()
        self.positions = nn.Parameter(torch.zeros(grid_size**2, dim))

    def forward(self, x: Tensor) -> Tensor:
        positions, side = self.positions, math.isqrt(len(self.positions))
        if tuple(x.shape[1:3]) != (side, side):
            grid = positions.float().T.unflatten(1, (side, side))[None]
            grid = F.interpolate(grid, tuple(x.shape[1:3]), mode="bicubic", antialias=True)
            return x + grid[0].permute(1, 2, 0).to(x.dtype)
        return x + positions.view(side, side, -1)


class SinCosPositions(nn.Module):
    """Sines and cosines of each cell's column, then of its row."""

    def __init__(self, theta: float):
        super().__init__()
        self.theta = theta

    def forward(self, x: Tensor) -> Tensor:
        _, height, width, dim = x.shape
        exponents = torch.arange(dim // 4, dtype=torch.float32, device=x.device) / (dim // 4)
        frequencies = self.theta**-exponents

        def along(length: int) -> Tensor:
            places = torch.arange(length, dtype=torch.float32, device=x.device)
            angles = places[:, None] * frequencies
            return torch.cat([angles.sin(), angles.cos()], dim=1)

        columns = along(width)[None].expand(height, -1, -1)
        rows = along(height)[:, None].expand(-1, width, -1)
        return x + torch.cat([columns, rows], dim=2).to(x.dtype)


class ClassToken(nn.Module):
    """A learned token before the patches, and its position."""

    def __init__(self, dim: int):
        super().__init__()
        self.token = nn.Parameter(torch.zeros(dim))
        self.position = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        token = (self.token + self.position).to(x.dtype)
        return torch.cat([token.expand(len(x), 1, -1), x], dim=1)


class VisionEncoder(nn.Module):
    """Normalized pixels [J, 3, h, w] -> patch features [J, P, D]."""

    def __init__(self, settings: dict[str, Any]):
        super().__init__()
        dim, self.patch_size = settings["model_dim"], settings["patch_size"]
        self.patch_embedding = nn.Linear(
            3 * self.patch_size**2, dim, bias=settings["patch_embedding_bias"]
        )

        def norm(name: str) -> nn.Module:
            return make_norm(dim, settings[name]) if settings[name] else nn.Identity()

        self.patch_norm = norm("patch_norm")
        theta = settings["sin_cos_theta"]
        grid_size = settings["image_size"] // self.patch_size
        self.positions = Positions(grid_size, dim) if theta is None else SinCosPositions(theta)
        self.class_token = ClassToken(dim) if settings["has_class_token"] else None
        self.pre_norm = norm("pre_norm")
        self.layers = nn.ModuleList(Block(each, i) for i, each in enumerate(settings["layers"]))
        self.final_norm = norm("final_norm")

    def forward(self, pixel_values: Tensor) -> Tensor:
        size = self.patch_size
        patches = pixel_values.to(self.patch_embedding.weight.dtype)
        # J c rows y columns x -> J rows columns y x c
        patches = patches.unflatten(3, (-1, size)).unflatten(2, (-1, size))
        patches = patches.permute(0, 2, 4, 3, 5, 1).flatten(3)
        x = self.positions(self.patch_norm(self.patch_embedding(patches))).flatten(1, 2)
        if self.class_token is not None:
            x = self.class_token(x)
        x = self.pre_norm(x)
        for layer in self.layers:
            x = layer(x)
        return self.final_norm(x if self.class_token is None else x[:, 1:])


def pool(features: Tensor, side: int) -> Tensor:
    """Averages patches [J, P, D] over a square grid of bins: [J, side^2, D]."""
    grid = math.isqrt(features.shape[1])
    maps = features.transpose(1, 2).unflatten(2, (grid, grid))
    return F.adaptive_avg_pool2d(maps, side).flatten(2).transpose(1, 2)


class AveragePooling(nn.Module):
    def __init__(self, settings: dict[str, Any]):
        super().__init__()
        self.side = math.isqrt(settings["num_image_tokens"])
        dims = settings["input_dim"], settings["output_dim"]
        self.projection = nn.Linear(*dims, bias=settings["bias"])

    def forward(self, features: Tensor) -> Tensor:
        return self.projection(pool(features, self.side))


class MLP(nn.Module):
    def __init__(self, settings: dict[str, Any]):
        super().__init__()
        self.side = math.isqrt(settings["num_image_tokens"])
        dim, bias = settings["output_dim"], settings["bias"]
        self.up = nn.Linear(settings["input_dim"], dim, bias=bias)
        self.down = nn.Linear(dim, dim, bias=bias)
        self.activation = ACTIVATIONS[settings["activation"]]

    def forward(self, features: Tensor) -> Tensor:
        if features.shape[1] != self.side**2:
            features = pool(features, self.side)
        return self.down(self.activation(self.up(features)))


class AttentionPooling(nn.Module):
    def __init__(self, settings: dict[str, Any]):
        super().__init__()
        dim, norm = settings["model_dim"], settings["norm"]
        self.queries = nn.Parameter(torch.zeros(settings["num_image_tokens"], dim))
        self.input_norm = make_norm(settings["input_dim"], norm)
        self.blocks = nn.ModuleList(Block(each) for each in settings["blocks"])
        self.output_norm = make_norm(dim, norm)
        self.output = nn.Linear(dim, settings["output_dim"])

    def forward(self, features: Tensor) -> Tensor:
        source = self.input_norm(features)
        x = self.queries.to(source.dtype).expand(len(source), -1, -1)
        for block in self.blocks:
            x = block(x, source=source)
        return self.output(self.output_norm(x))


class PointwiseNorm(nn.Module):
    def __init__(self, inputs: int, outputs: int, norm: dict[str, Any]):
        super().__init__()
        self.linear = nn.Linear(inputs, outputs, bias=False)
        self.norm = make_norm(outputs, norm)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.linear(x))


class SqueezeExcite(nn.Module):
    def __init__(self, dim: int, squeezed: int):
        super().__init__()
        self.squeeze = nn.Linear(dim, squeezed)
        self.excite = nn.Linear(squeezed, dim)

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.sigmoid(self.excite(F.silu(self.squeeze(x.mean(dim=(1, 2))))))
        return x * gate[:, None, None]


class BottleneckBlock(nn.Module):
    """RegNet block over maps [J, h, w, channels]."""

    def __init__(self, inputs: int, outputs: int, squeezed: int, norm: dict[str, Any]):
        super().__init__()
        self.pointwise_in = PointwiseNorm(inputs, outputs, norm)
        self.depthwise = nn.Parameter(torch.zeros(3, 3, outputs))
        self.depthwise_norm = make_norm(outputs, norm)
        self.squeeze_excite = SqueezeExcite(outputs, squeezed)
        self.pointwise_out = PointwiseNorm(outputs, outputs, norm)
        self.shortcut = None if inputs == outputs else PointwiseNorm(inputs, outputs, norm)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.shortcut is None else self.shortcut(x)
        x = F.silu(self.pointwise_in(x))
        kernel = self.depthwise.permute(2, 0, 1)[:, None]
        maps = F.conv2d(x.permute(0, 3, 1, 2), kernel, padding=1, groups=len(kernel))
        x = self.squeeze_excite(F.silu(self.depthwise_norm(maps.permute(0, 2, 3, 1))))
        return F.silu(self.pointwise_out(x) + shortcut)


class CAbstractor(nn.Module):
    def __init__(self, settings: dict[str, Any]):
        super().__init__()
        self.side = math.isqrt(settings["num_image_tokens"])
        inputs, norm = settings["input_dim"], settings["norm"]
        self.positions = Positions(settings["grid_size"], inputs)
        self.stage_1, self.stage_2 = (
            nn.ModuleList(BottleneckBlock(*dims, norm) for dims in stage)
            for stage in (settings["stage_1"], settings["stage_2"])
        )
        self.read_out = nn.ModuleList(nn.Linear(*dims) for dims in settings["read_out"])

    def forward(self, features: Tensor) -> Tensor:
        grid = math.isqrt(features.shape[1])
        x = self.positions(features.unflatten(1, (grid, grid)))
        for block in self.stage_1:
            x = block(x)
        x = pool(x.flatten(1, 2), self.side).unflatten(1, (self.side, self.side))
        for block in self.stage_2:
            x = block(x)
        x = self.read_out[0](x.flatten(1, 2))
        for linear in self.read_out[1:]:
            x = linear(F.silu(x))
        return x


CONNECTORS = {
    "average_pooling": AveragePooling,
    "attention_pooling": AttentionPooling,
    "c_abstractor": CAbstractor,
    "mlp": MLP,
}


class Decoder(nn.Module):
    """Embeddings -> hidden states; `head` is None if the output layer is the embedding table."""

    def __init__(self, settings: dict[str, Any]):
        super().__init__()
        vocab_size, dim = settings["vocab_size"], settings["model_dim"]
        self.embedding = nn.Embedding(vocab_size, dim)
        self.layers = nn.ModuleList(Block(each, i) for i, each in enumerate(settings["layers"]))
        self.norm = make_norm(dim, settings["norm"])
        is_tied = settings["tied_embeddings"]
        self.head = None if is_tied else nn.Linear(dim, vocab_size, bias=False)

    def logits(self, hidden: Tensor) -> Tensor:
        weight = self.embedding.weight if self.head is None else self.head.weight
        return F.linear(hidden, weight).float()


class MM1ForConditionalGeneration(PreTrainedModel, GenerationMixin):
    """Maps text and images to logits of the next token; supports `generate`."""

    config_class = MM1Config
    base_model_prefix = ""
    main_input_name = "input_ids"
    input_modalities = ("image", "text")
    _no_split_modules = ["Block"]
    _supports_sdpa = True
    _supports_flash_attn = False

    def __init__(self, config: MM1Config):
        super().__init__(config)
        self.vision_encoder = self.connector = None
        if config.vision_settings is not None:
            self.vision_encoder = VisionEncoder(config.vision_settings)
            self.connector = CONNECTORS[config.connector_settings["kind"]](
                config.connector_settings
            )
        self.decoder = Decoder(config.decoder_settings)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Does nothing, since every parameter comes from the checkpoint."""

    def get_input_embeddings(self) -> nn.Module:
        return self.decoder.embedding

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.decoder.embedding = value

    def get_output_embeddings(self) -> nn.Module | None:
        return self.decoder.head

    def image_embeddings(self, pixel_values: Tensor) -> Tensor:
        """Returns the embeddings of images in decoder space: [J, M, D]."""
        return self.connector(self.vision_encoder(pixel_values))

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        cache: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Runs whole rows or, with a cache, the next positions of rows.

        Args:
            past_key_values, cache: The KV cache, as older and newer releases of transformers name
                it.
            pixel_values: All images of all rows in reading order; the k-th fills the k-th run of
                image tokens.
            attention_mask: One value per position, cached ones included; 0 is padding.
            labels: Targets, not shifted; -100 is not scored.
            logits_to_keep: Number of last positions to return logits of; 0 means all.
        """
        x = self.decoder.embedding(input_ids) if inputs_embeds is None else inputs_embeds
        if pixel_values is not None and input_ids is not None:
            is_image = input_ids == self.config.image_token_id
            if is_image.any():
                images = self.image_embeddings(pixel_values).to(x.dtype).flatten(0, 1)
                if int(is_image.sum()) != len(images):
                    raise ValueError(
                        f"{int(is_image.sum())} image tokens, and {len(images)} embeddings of "
                        f"{len(pixel_values)} images; use the processor, which makes them agree"
                    )
                x = x.masked_scatter(is_image[..., None], images)
        cache = past_key_values if cache is None else cache
        if use_cache and cache is None:
            cache = DynamicCache()
        past = 0 if cache is None else cache.get_seq_length()
        num_rows, length = x.shape[:2]
        if attention_mask is None or attention_mask.ndim != 2:
            attention_mask = x.new_ones((num_rows, past + length), dtype=torch.long)
        attention_mask = attention_mask[:, : past + length]
        places = (attention_mask.cumsum(1) - 1).clamp(min=0)
        positions = places[:, past:] if position_ids is None else position_ids
        mask = self._mask(attention_mask, past)
        for layer in self.decoder.layers:
            x = layer(x, positions=positions, mask=mask, cache=cache)
        hidden = self.decoder.norm(x)
        kept = hidden[:, -logits_to_keep:] if logits_to_keep else hidden
        logits = self.decoder.logits(kept)
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return CausalLMOutputWithPast(loss=loss, logits=logits, **{CACHE_NAME: cache})

    def _mask(self, attention_mask: Tensor, past: int) -> Tensor:
        """Returns the causal mask [B, 1, T, S], without padding."""
        places = torch.arange(attention_mask.shape[1], device=attention_mask.device)
        causal = places[None, :] <= places[past:, None]
        mask = causal[None] & attention_mask[:, None, :].bool()
        # Padding attends to itself, since a softmax over no position is NaN.
        itself = places[None, :] == places[past:, None]
        return (mask | itself[None])[:, None]
