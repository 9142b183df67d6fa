"""Other libraries load exported CLIPs, SigLIPs and AIM trunks, which are read back bit for bit."""

import json
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import torch
import transformers
from drawn_model import drawn_params
from flax import nnx
from parity import randomise
from transformers import CLIPConfig, CLIPModel, SiglipConfig, SiglipModel

from mm1_jax.checkpoints.weights_folder import StoredParams, WeightsWriter, describe
from mm1_jax.commands.convert_checkpoint import _export_encoder
from mm1_jax.data.pairs import text_tokens
from mm1_jax.data.tokenizers.hf import HFTokenizer
from mm1_jax.data.tokenizers.sentencepiece import Tokenizer
from mm1_jax.interop import clip, clip_tensors
from mm1_jax.interop.encoder_export import aim_trunk, export_encoder, open_clip_pair
from mm1_jax.interop.exporter import export_source, parts_of_weights
from mm1_jax.interop.families import Changes
from mm1_jax.interop.importer import import_checkpoint
from mm1_jax.interop.mapping import flat_shapes
from mm1_jax.layers.attention import Pattern
from mm1_jax.layers.feed_forward import Activation
from mm1_jax.layers.norm import LayerNorm
from mm1_jax.layers.position_embedding import SinCosPositions
from mm1_jax.models.aim import AIM
from mm1_jax.models.clip import CLIP
from mm1_jax.models.image_pooling import MAPPooling
from mm1_jax.models.text_encoder import TextPooling
from mm1_jax.models.vision_encoder import ClassToken

TOWER = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
VISION = {**TOWER, "patch_size": 4, "image_size": 8}
TEXT = {**TOWER, "vocab_size": 30, "max_position_embeddings": 7, "eos_token_id": 29}
SIZES = {"model_dim": 16, "num_layers": 2, "num_heads": 2, "hidden_dim": 24}
LENGTH = 9


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.default_config().instantiate()


def clip_config(vocab_size: int) -> CLIP.Config:
    cfg = CLIP.default_config().set(features_dim=12)
    cfg.vision_encoder.set(
        image_size=8,
        patch_size=4,
        final_norm=None,
        class_token=ClassToken.default_config(),
        pre_norm=LayerNorm.default_config().set(eps=1e-5),
        **SIZES,
    )
    cfg.vision_encoder.stack.layer.norm.eps = 1e-5
    cfg.text_encoder.set(vocab_size=vocab_size, max_length=LENGTH, **SIZES)
    return cfg


def siglip_config(vocab_size: int) -> CLIP.Config:
    cfg = clip_config(vocab_size).set(
        features_dim=16,
        image_projection=None,
        image_pooling=MAPPooling.default_config(),
        initial_bias=-10.0,
    )
    encoder, text = cfg.vision_encoder, cfg.text_encoder
    encoder.set(class_token=None, pre_norm=None, final_norm=LayerNorm.default_config())
    encoder.patch_embedding.bias = text.projection.bias = True
    text.set(pooling=TextPooling.LAST)
    text.stack.layer.attention.pattern = Pattern.BIDIRECTIONAL
    for norm in (encoder.stack.layer.norm, text.stack.layer.norm, text.final_norm):
        norm.eps = 1e-6
    for part in (encoder.stack.layer, text.stack.layer, cfg.image_pooling):
        part.feed_forward.activation = Activation.GELU_TANH
    return cfg


def aim_config() -> AIM.Config:
    cfg = AIM.default_config()
    encoder = cfg.vision_encoder.set(
        image_size=8,
        patch_size=4,
        positions=SinCosPositions.default_config(),
        patch_norm=LayerNorm.default_config(),
        **{**SIZES, "hidden_dim": 64},
    )
    encoder.patch_embedding.bias = True
    encoder.stack.layer.attention.set(bias=False, pattern=Pattern.PREFIX)
    encoder.stack.layer.feed_forward.up.bias = False
    encoder.stack.layer.feed_forward.down.bias = False
    cfg.pixel_head.set(model_dim=8, num_layers=1, hidden_dim=8)
    return cfg


def written(cfg, folder: Path) -> StoredParams:
    """Writes random parameters of a model as a folder of weights."""
    abstract = nnx.eval_shape(lambda: cfg.instantiate(rngs=nnx.Rngs(params=jax.random.key(0))))
    params = drawn_params(nnx.to_pure_dict(nnx.split(abstract, nnx.Param)[1]), 0)
    flat = dict(zip(flat_shapes(params), jax.tree.leaves(params), strict=True))
    shapes = {path: x.shape for path, x in flat.items()}
    dtypes = dict.fromkeys(flat, np.dtype(np.float32))
    folder.mkdir()
    writer = WeightsWriter(folder, shapes, dtypes, {})
    for path, x in flat.items():
        writer.write(path, (), np.asarray(x))
    describe(folder, {"format": 1, "parts": {}})
    return StoredParams(folder)


def export(cfg, tokenizer, folder: Path, format: str = "auto", **options):
    stored = written(cfg, folder / "weights")
    flags = Namespace(format=format, adapters=None, output=folder / "out")
    input = SimpleNamespace(tokenizer=SimpleNamespace(instantiate=lambda: tokenizer))
    run = SimpleNamespace(model=cfg, input=input)
    return _export_encoder(flags, stored, run, options)


def made(folder: Path, name: str) -> Path:
    (folder / name).mkdir()
    return folder / name


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_a_whole_model_of_transformers_goes_in_and_out_bit_for_bit(name, tmp_path):
    if name == "clip":
        hf = CLIPConfig(projection_dim=12, text_config=TEXT, vision_config=VISION)
        model = randomise(CLIPModel(hf))
    else:
        hf = SiglipConfig(text_config={**TEXT, "projection_size": 16}, vision_config=VISION)
        model = randomise(SiglipModel(hf))
    model.save_pretrained(tmp_path / "hf")
    changes = Changes(both_towers=True)
    imported = import_checkpoint(tmp_path / "hf", tmp_path / "ours", changes=changes)
    assert imported.comparison is not None and imported.comparison.is_good
    assert imported.num_passthrough == 0
    assert imported.num_parameters == sum(x.numel() for x in model.parameters())
    stored = StoredParams(tmp_path / "ours")
    assert stored.shapes["logit_scale"] == ()
    assert clip.TEXT in parts_of_weights(stored)
    export_source(stored, tmp_path / "ours", tmp_path / "back", skip_comparison=True)
    back = type(model).from_pretrained(tmp_path / "back").state_dict()
    for key, value in model.state_dict().items():
        assert torch.equal(value, back[key]), key


def test_a_run_is_exported_for_transformers_with_tokenizer_and_preprocessing(tmp_path, tokenizer):
    exported = export(siglip_config(tokenizer.vocab_size), tokenizer, tmp_path)
    assert exported.model_type == "siglip" and exported.comparison.is_good
    texts = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    padding = {"padding": "max_length", "truncation": True}
    for text in ("a red circle", "a long text of many words about nothing at all, and more"):
        ids = text_tokens(tokenizer, text, LENGTH)
        assert texts(text, **padding).input_ids == ids + [0] * (LENGTH - len(ids))
    images = json.loads((tmp_path / "out" / "preprocessor_config.json").read_text())
    assert images["size"] == {"height": 8, "width": 8} and images["resample"] == 3


def test_the_byte_pair_encoding_of_clip_is_read_and_exported(tmp_path):
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = [*letters, *(f"{x}</w>" for x in letters), "re", "red</w>"]
    words += ["<|startoftext|>", "<|endoftext|>"]
    theirs = transformers.CLIPTokenizer(
        vocab={word: i for i, word in enumerate(words)}, merges=[("r", "e"), ("re", "d</w>")]
    )
    theirs.save_pretrained(tmp_path / "hf")
    path = tmp_path / "hf" / "tokenizer.json"
    ours = HFTokenizer.default_config().set(model_path=str(path), vocab_multiple=1).instantiate()
    assert text_tokens(ours, "A red  cat", LENGTH) == theirs("A red  cat").input_ids
    exported = export(clip_config(ours.vocab_size), ours, tmp_path)
    assert exported.model_type == "clip" and exported.comparison.is_good
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["text_config"]["eos_token_id"] == words.index("<|endoftext|>")
    texts = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    for text in ("a red cat", "red " * 20):
        found = texts(text, truncation=True).input_ids
        assert found == text_tokens(ours, text, LENGTH) and len(found) <= LENGTH


def test_a_run_is_exported_for_open_clip_with_its_names_and_shapes(tmp_path, tokenizer):
    reference = json.loads(Path(__file__).with_name("open_clip_pair.json").read_text())
    cfg = clip_config(tokenizer.vocab_size).set(initial_bias=-3.0)
    # transformers' CLIP has no bias.
    exported = export(cfg, tokenizer, tmp_path)
    assert exported.model_type == "open_clip"
    out = tmp_path / "out"
    assert json.loads((out / "open_clip_config.json").read_text()) == reference["config"]
    assert {path.name for path in out.iterdir()} == {
        *("open_clip_config.json", "open_clip_model.safetensors"),
        *("tokenizer.model", "tokenizer_config.json"),
    }
    model = open_clip_pair(cfg, tokenizer)
    assert {entry.name: list(entry.shape) for entry in model.entries} == reference["shapes"]
    # The export is imported as a whole, and every value is that of the run.
    import_checkpoint(out, tmp_path / "again", changes=Changes(both_towers=True))
    first, again = StoredParams(tmp_path / "weights"), StoredParams(tmp_path / "again")
    assert first.shapes == again.shapes
    for path in first.shapes:
        assert np.array_equal(first.read(path), again.read(path)), path
    # CustomTextCLIP has the text tower below `text.`, and some models scalars of one row.
    scalars = (clip.SCALE, clip.BIAS)
    entries = clip_tensors.open_clip_entries(
        clip.parts_of_model(cfg), scalars, text_root="text.", rank=1
    )
    names = {entry.name for entry in entries}
    table = clip_tensors.open_clip_pair_table(clip.parts_of_model(cfg), names, 1)
    assert {entry.name for entry in table.entries} == names
    assert entries[-1].shape == (1,)


def test_an_aim_trunk_is_exported_and_imported_bit_for_bit(tmp_path, tokenizer):
    cfg = aim_config()
    exported = export(cfg, tokenizer, tmp_path)
    assert exported.model_type == "aim"
    import_checkpoint(tmp_path / "out", tmp_path / "again", skip_comparison=True)
    first, again = StoredParams(tmp_path / "weights"), StoredParams(tmp_path / "again")
    assert {path for path in first.shapes if path.startswith("vision_encoder/")} == {*again.shapes}
    for path in again.shapes:
        assert np.array_equal(first.read(path), again.read(path)), path
    (encoder,) = parts_of_weights(again).values()
    assert encoder.pixel_mean == cfg.vision_encoder.pixel_mean
    images = json.loads((tmp_path / "out" / "preprocessor_config.json").read_text())
    assert images["size"] == {"shortest_edge": 9} and images["crop_size"]["height"] == 8


def test_models_without_a_counterpart_are_refused_with_the_reason(tmp_path, tokenizer):
    cfg = clip_config(tokenizer.vocab_size)
    with pytest.raises(ValueError, match="whose eos is 2, .*export with --format=open_clip"):
        export(cfg, tokenizer, made(tmp_path, "a"), "clip")
    with pytest.raises(ValueError, match="this run trained a CLIP; choose --format=clip or"):
        export(cfg, tokenizer, made(tmp_path, "b"), "aim")
    for name in "ab":
        assert not (tmp_path / name / "out").exists()
    mean = clip_config(tokenizer.vocab_size)
    mean.text_encoder.pooling = TextPooling.MEAN
    with pytest.raises(ValueError, match="open_clip has no CLIP with text pooling mean"):
        open_clip_pair(mean, tokenizer)
    trunk = aim_config().vision_encoder
    trunk.stack.layer.norm.eps = 1e-5
    with pytest.raises(ValueError, match=r"eps is 1e-05, and the format can only hold 1e-06"):
        aim_trunk(trunk)
    with pytest.raises(ValueError, match="no text tower"):
        export(aim_config(), tokenizer, made(tmp_path, "c"))
        import_checkpoint(tmp_path / "c" / "out", tmp_path / "d", changes=Changes(both_towers=True))


def test_a_damaged_export_is_not_kept(tmp_path, tokenizer):
    cfg = clip_config(tokenizer.vocab_size)
    stored = written(cfg, tmp_path / "weights")
    model = open_clip_pair(cfg, tokenizer)
    model.config["model_cfg"]["text_cfg"]["pool_type"] = "last"
    with pytest.raises(ValueError, match="text_encoder.pooling is .*, and the format can only"):
        export_encoder(stored, model, clip.parts_of_model(cfg), tmp_path / "out", files={})
    assert not (tmp_path / "out").exists()
