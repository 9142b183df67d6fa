"""Stores random weights, random inputs and the outputs of references in timm and open_clip.

Both import torchvision, which is incompatible with the torch of the test extra. So this script runs
in an environment of its own, 5.5 GB, and tests read its arrays from tests/references/arrays. Only
`contrastive` can be made with any torch, as it needs nothing of open_clip but the file loss.py:

    python3.11 -m venv timm
    timm/bin/pip install torch==2.14.1 torchvision==0.29.1 timm==1.0.31 open_clip_torch==3.3.0
    timm/bin/python tests/references/make_arrays.py            # writes the files
    timm/bin/python tests/references/make_arrays.py --check    # compares them with new ones
"""

import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

FOLDER = Path(__file__).parent / "arrays"
# Input dim, hidden dim, output dim, patches per side, tokens per side, blocks per stage, MLP depth.
C_ABSTRACTORS = {
    "c_abstractor": (12, 8, 10, 5, 3, 3, 2),
    "c_abstractor_same_channels": (12, 12, 10, 5, 3, 2, 1),
    "c_abstractor_no_blocks": (12, 12, 10, 5, 3, 0, 2),
}
TOWER = {
    "width": 16,
    "layers": 2,
    "head_width": 8,
    "patch_size": 4,
    "image_size": 16,
    "mlp_ratio": 1.5,
}
# The `model_cfg` of an open_clip_config.json, without the fields that all share.
TOWERS = {
    "gelu": {},
    "quick_gelu": {"quick_gelu": True},
    # The fields of ViT-L-14-CLIPA.json and ViT-L-14-CLIPS-224.json.
    "tanh": {"vision_cfg": {"act_kwargs": {"approximate": "tanh"}}},
    "small_eps": {"vision_cfg": {"norm_kwargs": {"eps": 1e-6}}},
    "larger": {"vision_cfg": {"image_size": 24}},
}
Arrays = dict[str, np.ndarray]


def draw(module: nn.Module, seed: int) -> nn.Module:
    """Draws all parameters, as zero biases and unit scales would hide mistakes.

    Convolutions are small, so that the variances of their outputs are near the eps of a norm.
    """
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = rng.standard_normal(parameter.shape).astype(np.float32)
            if parameter.ndim == 4:
                noise *= 0.1 * parameter[0].numel() ** -0.5
            elif name.endswith(("pos_emb", "positional_embedding", "class_embedding")):
                noise *= 0.1
            elif parameter.ndim == 1:
                noise = 0.3 * noise + name.endswith("weight")
            else:
                noise *= parameter.shape[-1] ** -0.5
            parameter.copy_(torch.from_numpy(noise))
    return module.eval()


def state(module: nn.Module) -> Arrays:
    return {f"weights/{name}": value.numpy() for name, value in module.state_dict().items()}


class HoneybeeCAbstractor(nn.Module):
    """Honeybee's CAbstractor (arXiv 2312.06742, honeybee/projectors.py) without its class token."""

    def __init__(
        self, inputs: int, hidden: int, outputs: int, grid: int, side: int, depth: int, layers: int
    ):
        from timm.layers import LayerNorm2d
        from timm.models.regnet import RegStage

        super().__init__()
        self.grid = grid
        self.pos_emb = nn.Parameter(torch.zeros(1, grid**2, inputs))
        stage = partial(RegStage, stride=1, dilation=1, act_layer=nn.SiLU, norm_layer=LayerNorm2d)
        self.net = nn.Sequential(
            stage(depth, inputs, hidden),
            nn.AdaptiveAvgPool2d((side, side)),
            stage(depth, hidden, hidden),
        )
        readout: list[nn.Module] = [nn.Linear(hidden, outputs)]
        for _ in range(1, layers):
            readout += [nn.SiLU(), nn.Linear(outputs, outputs)]
        self.readout = nn.Sequential(*readout)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        x = (features + self.pos_emb).transpose(1, 2).unflatten(2, (self.grid, self.grid))
        return self.readout(self.net(x).flatten(2).transpose(1, 2))


def c_abstractor(name: str) -> Arrays:
    sizes = C_ABSTRACTORS[name]
    module = draw(HoneybeeCAbstractor(*sizes), seed=1)
    inputs = np.random.default_rng(2).standard_normal((2, sizes[3] ** 2, sizes[0]))
    inputs = inputs.astype(np.float32)
    with torch.no_grad():
        outputs = module(torch.from_numpy(inputs)).numpy()
    return {**state(module), "inputs": inputs, "outputs": outputs}


def tower(name: str) -> nn.Module:
    from open_clip.model import _build_vision_tower

    fields = TOWERS[name]
    vision = {**TOWER, **fields.get("vision_cfg", {})}
    return _build_vision_tower(8, vision, quick_gelu=fields.get("quick_gelu", False))


def clip() -> Arrays:
    """Returns one set of weights, and the patch features of each tower in `TOWERS` by name."""
    from open_clip import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
    from open_clip.model import resize_pos_embed

    drawn = draw(tower("gelu"), seed=3)
    arrays = state(drawn)
    for name in TOWERS:
        module = tower(name).eval()
        weights = {f"visual.{key}": value for key, value in drawn.state_dict().items()}
        model = nn.Module()
        model.visual = module
        resize_pos_embed(weights, model)
        model.load_state_dict(weights)
        found: list[torch.Tensor] = []
        module.transformer.register_forward_hook(lambda *args, found=found: found.append(args[2]))
        size = module.image_size[0]
        images = np.random.default_rng(4).integers(0, 256, (1, size, size, 3), np.uint8)
        pixels = torch.from_numpy(images) / 255 - torch.tensor(OPENAI_DATASET_MEAN)
        with torch.no_grad():
            module((pixels / torch.tensor(OPENAI_DATASET_STD)).permute(0, 3, 1, 2))
        arrays[f"{name}/images"] = images
        arrays[f"{name}/features"] = found[0][:, 1:].numpy()
    return arrays


def contrastive() -> Arrays:
    """Returns features of a batch, and losses and gradients of open_clip's losses on them."""
    from open_clip.loss import ClipLoss, SigLipLoss

    rng = np.random.default_rng(5)
    drawn = torch.from_numpy(rng.standard_normal((2, 32, 12)).astype(np.float32))
    arrays = {"features": nn.functional.normalize(drawn, dim=-1).numpy()}
    for name, module, bias in (("softmax", ClipLoss(), None), ("sigmoid", SigLipLoss(), -3.0)):
        images, texts = (torch.tensor(x, requires_grad=True) for x in arrays["features"])
        numbers = [torch.tensor(x, requires_grad=True) for x in (14.0, bias) if x is not None]
        loss = module(images, texts, *numbers)
        loss.backward()
        arrays[f"{name}/loss"] = loss.detach().numpy()
        fields = ("images", "texts", "scale", "bias")
        for field, x in zip(fields, (images, texts, *numbers), strict=False):
            arrays[f"{name}/{field}"] = x.grad.numpy()
    return arrays


FILES: Mapping[str, Callable[[], Arrays]] = {
    **{name: partial(c_abstractor, name) for name in C_ABSTRACTORS},
    "open_clip": clip,
    "contrastive": contrastive,
}


def load(name: str) -> Arrays:
    with np.load(FOLDER / f"{name}.npz", allow_pickle=False) as file:
        return dict(file)


def main(arguments: list[str]) -> None:
    for name, make in FILES.items():
        arrays = make()
        if "--check" in arguments:
            stored = load(name)
            assert stored.keys() == arrays.keys(), name
            for key, value in arrays.items():
                np.testing.assert_allclose(stored[key], value, rtol=0, atol=1e-5, err_msg=key)
        else:
            FOLDER.mkdir(exist_ok=True)
            np.savez(FOLDER / f"{name}.npz", **arrays)
        print(f"{name}: {len(arrays)} arrays, {sum(x.nbytes for x in arrays.values())} bytes")


if __name__ == "__main__":
    main(sys.argv[1:])
