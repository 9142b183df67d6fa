"""CLIP's vision encoders, compared with transformers (full width, two layers) and open_clip."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hf_weights import imported_weights
from make_arrays import TOWER, TOWERS, clip, load
from parity import assert_equal, randomise, with_weights
from safetensors.numpy import save_file
from transformers import CLIPVisionConfig, CLIPVisionModel

from experiments.vision_encoders import vit_h14, vit_l14
from mm1_jax.checkpoints.weights_folder import StoredParams
from mm1_jax.interop.exporter import parts_of_weights
from mm1_jax.interop.importer import import_checkpoint
from mm1_jax.layers.feed_forward import Activation


def hf_tower(cfg, image_size):
    config = CLIPVisionConfig(
        hidden_size=cfg.model_dim,
        intermediate_size=cfg.hidden_dim,
        num_hidden_layers=cfg.num_layers,
        num_attention_heads=cfg.num_heads,
        patch_size=14,
        image_size=image_size,
        hidden_act=cfg.stack.layer.feed_forward.activation.value,
        attn_implementation="eager",
    )
    return CLIPVisionModel(config)


def resized(state, image_size):
    """Resizes the positions of a state to another image size as open_clip's `resize_pos_embed`."""
    name, size = "embeddings.position_embedding.weight", image_size // 14
    first, rest = state[name][:1], state[name][1:]
    side = int(len(rest) ** 0.5)
    grid = rest.T.unflatten(1, (side, side))[None]
    grid = F.interpolate(grid, (size, size), mode="bicubic", antialias=True, align_corners=False)
    return {**state, name: torch.cat([first, grid[0].flatten(1).T])}


@pytest.mark.parametrize(
    ("encoder", "image_size", "activation"),
    [
        (vit_l14, 224, Activation.QUICK_GELU),
        (vit_l14, 336, Activation.GELU),
        (vit_h14, 224, Activation.GELU),
        (vit_h14, 378, Activation.QUICK_GELU),
    ],
)
def test_features_of_patches_equal_those_of_transformers(
    encoder, image_size, activation, call, tmp_path
):
    cfg = encoder(224, activation).set(num_layers=2)
    tower = randomise(hf_tower(cfg, 224))
    assert cfg.pre_norm.eps == cfg.stack.layer.norm.eps == tower.config.layer_norm_eps
    ours = with_weights(cfg, imported_weights(tower, tmp_path))
    if image_size != 224:
        larger = hf_tower(cfg, image_size).eval()
        larger.load_state_dict(resized(tower.state_dict(), image_size))
        tower = larger
    shape = (1, image_size, image_size, 3)
    images = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
    mean, std = torch.tensor(cfg.pixel_mean), torch.tensor(cfg.pixel_std)
    pixels = (torch.from_numpy(images) / 255 - mean) / std
    with torch.no_grad():
        expected = tower(pixels.permute(0, 3, 1, 2)).last_hidden_state[:, 1:]
    assert_equal(call(ours, images), expected)


@pytest.mark.parametrize("source", ["stored", "live"])
@pytest.mark.parametrize("name", TOWERS)
def test_features_of_an_imported_tower_equal_those_of_open_clip(name, source, call, tmp_path):
    """Builds the tower from its `open_clip_config.json` alone."""
    if source == "live":
        pytest.importorskip("open_clip")
    arrays = load("open_clip") if source == "stored" else clip()
    # The image is larger than in training, so positions are resized.
    size = {"image_size": TOWER["image_size"]}
    model = {**TOWERS[name], "vision_cfg": {**TOWER, **TOWERS[name].get("vision_cfg", {}), **size}}
    (tmp_path / "theirs").mkdir()
    config = {"model_cfg": model, "preprocess_cfg": {}}
    (tmp_path / "theirs" / "open_clip_config.json").write_text(json.dumps(config))
    save_file(
        {
            f"visual.{path.partition('/')[2]}": value
            for path, value in arrays.items()
            if path.startswith("weights/")
        },
        tmp_path / "theirs" / "open_clip_model.safetensors",
    )
    import_checkpoint(tmp_path / "theirs", tmp_path / "ours", skip_comparison=True)
    stored = StoredParams(tmp_path / "ours")
    cfg = parts_of_weights(stored)["vision_encoder"]
    params = {path.partition("/")[2]: stored.read(path) for path in stored.shapes}
    found = call(with_weights(cfg, params), arrays[f"{name}/images"])
    assert_equal(found, torch.tensor(arrays[f"{name}/features"]))
