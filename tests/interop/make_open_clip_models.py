"""Writes weights, inputs and features of small models of open_clip, from a wheel.

pip download --no-deps open_clip_torch
python tests/interop/make_open_clip_models.py open_clip_torch-3.3.0-py3-none-any.whl

It needs torch. The modules of the models are loaded by themselves, with a stub for torchvision,
which only ResNets and pictures need.
"""

import importlib.machinery
import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np

TARGET = Path(__file__).parent / "open_clip_models.npz"
VISION = {"image_size": 8, "patch_size": 4, "layers": 1, "width": 8, "head_width": 4}
TEXT = {"context_length": 6, "vocab_size": 20, "layers": 2, "width": 8, "heads": 2}
# `model_cfg` of an open_clip_config.json. The second has the fields of ViT-L-14-CLIPA.json.
MODELS: dict[str, dict[str, Any]] = {
    "openai": {"quick_gelu": True, "vision_cfg": VISION, "text_cfg": TEXT},
    "clipa": {
        "custom_text": True,
        "vision_cfg": {
            **VISION,
            "no_ln_pre": True,
            "pool_type": "avg",
            "final_ln_after_pool": True,
            "pos_embed_type": "sin_cos_2d",
        },
        "text_cfg": {**TEXT, "no_causal_mask": True, "pool_type": "last", "proj_bias": True},
    },
    "bias": {
        "init_logit_bias": -10.0,
        "nonscalar_logit_scale": True,
        "vision_cfg": {**VISION, "act_kwargs": {"approximate": "tanh"}, "mlp_ratio": 2.5},
        "text_cfg": {**TEXT, "pool_type": "eos", "eos_id": 2, "norm_kwargs": {"eps": 1e-3}},
    },
}
EMBED_DIM, EOS = 6, {"openai": 19, "clipa": 19, "bias": 2}
LENGTHS = (6, 3)


def models_module(wheel: Path) -> Any:
    """Imports `open_clip.model` from a wheel."""
    for name in ("torchvision", "torchvision.ops", "torchvision.ops.misc"):
        stub: Any = types.ModuleType(name)
        stub.__spec__ = importlib.machinery.ModuleSpec(name, None)
        stub.FrozenBatchNorm2d = object
        sys.modules[name] = stub
    package = types.ModuleType("open_clip")
    package.__path__ = [f"{wheel}/open_clip"]
    sys.modules["open_clip"] = package
    sys.path.insert(0, str(wheel))
    return importlib.import_module("open_clip.model")


def main(wheel: Path) -> None:
    import torch

    module = models_module(wheel)
    arrays: dict[str, np.ndarray] = {}
    rng = np.random.default_rng(0)
    for name, config in MODELS.items():
        config = {**config, "embed_dim": EMBED_DIM}
        fields = {k: v for k, v in config.items() if k != "custom_text"}
        klass = module.CustomTextCLIP if "custom_text" in config else module.CLIP
        model = klass(**fields).eval()
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                scale = 1.0 if parameter.ndim <= 1 else parameter.shape[-1] ** -0.5
                noise = scale * rng.standard_normal(tuple(parameter.shape)).astype(np.float32)
                if key not in ("logit_scale", "logit_bias"):
                    parameter.copy_(torch.from_numpy(noise))
            images = rng.integers(0, 256, (len(LENGTHS), 8, 8, 3), dtype=np.uint8)
            tokens = np.zeros((len(LENGTHS), TEXT["context_length"]), np.int64)
            for row, length in zip(tokens, LENGTHS, strict=True):
                row[:length] = rng.integers(3, 19, length)
                row[length - 1] = EOS[name]
            pixels = torch.from_numpy(images).float().permute(0, 3, 1, 2) / 255
            logits, _ = model.get_logits((pixels - 0.5) / 0.5, torch.from_numpy(tokens))
            found = {
                "images": images,
                "tokens": tokens,
                "logits": logits.numpy(),
                "image_features": model.encode_image((pixels - 0.5) / 0.5, normalize=True).numpy(),
                "text_features": model.encode_text(torch.tensor(tokens), normalize=True).numpy(),
            }
        found |= {f"weights/{key}": value.numpy() for key, value in model.state_dict().items()}
        found["config"] = np.array(json.dumps(config))
        arrays |= {f"{name}/{key}": value for key, value in found.items()}
    np.savez_compressed(TARGET, **arrays)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
