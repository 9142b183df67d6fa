"""A whole MM1 has the same logits and the same answers in transformers."""

import jax
import numpy as np
import pytest
import torch
from flax import nnx
from near_ties import assert_answers_of_transformers
from transformers import AutoModelForCausalLM, AutoProcessor

from experiments import sizes, vision_encoders
from mm1_jax.batch import Document, Image, Text
from mm1_jax.checkpoints.weights_folder import StoredParams, WeightsWriter, describe
from mm1_jax.data.examples import ExampleBuilder
from mm1_jax.data.grid_rules import ClosestAspect, FixedGrid, LeastPadding, Pinpoints
from mm1_jax.data.images import ImageTransform
from mm1_jax.data.tiling import IndexMarks, Overview, SeparatorMarks, Tiling
from mm1_jax.data.tokenizers.sentencepiece import Tokenizer
from mm1_jax.decoding.generate import generate
from mm1_jax.decoding.options import DecodingOptions
from mm1_jax.interop.compare import one_document_rows, pixel_values, random_images, with_params
from mm1_jax.interop.exporter import ExportedTokenizer, export_mm1
from mm1_jax.interop.mm1 import model_parts
from mm1_jax.interop.tokenizers import export_tokenizer
from mm1_jax.layers.attention import Pattern
from mm1_jax.layers.feed_forward import Activation
from mm1_jax.layers.norm import RMSNorm
from mm1_jax.layers.rotary import StretchedRotary
from mm1_jax.models.connectors.attention_pooling import AttentionPooling
from mm1_jax.models.connectors.average_pooling import AveragePooling
from mm1_jax.models.connectors.c_abstractor import CAbstractor
from mm1_jax.models.connectors.mlp import MLP

IMAGE_TOKEN = 4


def tiny():
    return sizes.tiny().set(image_token=IMAGE_TOKEN, dtype="float32")


def with_connector(connector, **decoder):
    cfg = tiny().set(connector=connector)
    cfg.decoder.set(**decoder)
    return cfg


def of_clip():
    cfg = tiny()
    cfg.vision_encoder = vision_encoders.vit_l14(28, Activation.QUICK_GELU).set(
        model_dim=32, num_layers=2, num_heads=2, hidden_dim=48
    )
    attention = cfg.decoder.stack.layer.attention
    attention.qk_norm = RMSNorm.default_config()
    attention.bias, attention.output_bias = True, False
    attention.rotary = StretchedRotary.default_config().set(original_max_position_embeddings=16)
    return cfg


def of_aim():
    cfg = tiny()
    cfg.vision_encoder = vision_encoders.aim_600m(Pattern.BIDIRECTIONAL).set(
        image_size=42, model_dim=32, num_layers=2, num_heads=2, hidden_dim=48
    )
    return cfg


def of_text():
    cfg = sizes.tiny_moe().set(image_token=IMAGE_TOKEN, vision_encoder=None, connector=None)
    cfg.decoder.moe_every = 4
    return cfg


MODELS = {
    "tiny": tiny,
    "tiny_moe": lambda: sizes.tiny_moe().set(image_token=IMAGE_TOKEN),
    "clip": of_clip,
    "aim": of_aim,
    "text": of_text,
    "average pooling": lambda: with_connector(
        AveragePooling.default_config().set(num_image_tokens=9)
    ),
    "attention pooling": lambda: with_connector(
        AttentionPooling.default_config().set(
            num_image_tokens=5, num_layers=2, num_heads=2, model_dim=16, hidden_dim=24
        )
    ),
    "deep c-abstractor": lambda: with_connector(
        CAbstractor.default_config().set(num_image_tokens=9, depth=2, hidden_dim=24)
    ),
    "mlp": lambda: with_connector(MLP.default_config().set(num_image_tokens=4)),
    "pooled mlp, tied": lambda: with_connector(
        MLP.default_config().set(num_image_tokens=1), tied_embeddings=True
    ),
}


def draw(cfg, seed=0):
    """Draws parameters by path, without zero biases and unit scales, which would hide mistakes."""
    module = nnx.eval_shape(lambda: cfg.instantiate(rngs=nnx.Rngs(params=0)))
    generator = np.random.default_rng(seed)
    shapes = nnx.to_pure_dict(nnx.state(module, nnx.Param))
    params = {}
    for keys, leaf in jax.tree_util.tree_leaves_with_path(shapes):
        path = "/".join(str(key.key) for key in keys)
        value = generator.standard_normal(leaf.shape, np.float32)
        if path.endswith("scale"):
            value = 1 + 0.2 * value
        elif cfg.decoder.tied_embeddings and path.startswith("decoder"):
            # Smaller than the layers' outputs, or a tied table would predict every token as itself.
            value *= 0.05 if "embedding" in path else 1.5 / np.sqrt(max(leaf.shape[-1], 8))
        elif not path.endswith(("embedding/weight", "positions", "token", "queries")):
            value = value * 0.3 / np.sqrt(leaf.shape[-1] if leaf.shape[-1] > 8 else 8)
        params[path] = value.astype(np.float32)
    return params


def store(params, folder):
    folder.mkdir()
    shapes = {path: value.shape for path, value in params.items()}
    writer = WeightsWriter(folder, shapes, {path: np.dtype(np.float32) for path in shapes}, {})
    for path, value in params.items():
        writer.write(path, (), value)
    describe(folder, {"parts": {}})
    return StoredParams(folder)


# The others take minutes in total.
QUICK = ("tiny", "tiny_moe", "clip")


@pytest.fixture(
    params=[pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in MODELS]
)
def exported(request, tmp_path, monkeypatch):
    """The config and parameters of a model, its export folder, and the result of the export."""
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    cfg = MODELS[request.param]()
    cfg.decoder.vocab_size = 64
    params = draw(cfg)
    tokenizer = ExportedTokenizer({}, bos=1, eos=2, pad=0, suppressed=(0, 1, 3, IMAGE_TOKEN))
    result = export_mm1(
        store(params, tmp_path / "ours"),
        model_parts(cfg),
        tmp_path / "hf",
        image_token=IMAGE_TOKEN,
        tokenizer=tokenizer,
    )
    return cfg, params, tmp_path / "hf", result


def test_logits_and_64_greedy_tokens_are_the_same(exported):
    cfg, params, folder, result = exported
    assert result.comparison.is_good
    # Logits that barely vary would prove little.
    assert result.comparison.scale > 0.1
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, trust_remote_code=True, local_files_only=True
    )
    tokens = np.random.default_rng(1).integers(5, 64, (2, 24))
    images, inputs = np.zeros((2, 1, 1, 3), np.uint8), {}
    if cfg.vision_encoder is not None:
        images = random_images(cfg.vision_encoder.image_size, seed=1)
        tokens[:, 3 : 3 + cfg.connector.num_image_tokens] = IMAGE_TOKEN
        encoder = cfg.vision_encoder
        pixels = pixel_values(images, encoder.pixel_mean, encoder.pixel_std)
        inputs["pixel_values"] = torch.from_numpy(pixels)
    ours = generate(
        with_params(cfg, params),
        one_document_rows(tokens, images),
        DecodingOptions(64, eos=2, pad=0, forbidden=(0, 1, 3, IMAGE_TOKEN)),
    )
    inputs["input_ids"] = torch.from_numpy(tokens)
    assert_answers_of_transformers(ours, model, max_new_tokens=64, do_sample=False, **inputs)


TILINGS = {
    "indices": Tiling.default_config().set(
        rule=LeastPadding.default_config(), marks=IndexMarks.default_config(), max_tiled_images=2
    ),
    "separators": Tiling.default_config().set(
        rule=FixedGrid.default_config().set(columns=3),
        overview=Overview.FIRST,
        marks=SeparatorMarks.default_config(),
    ),
    "no marks": Tiling.default_config().set(rule=ClosestAspect.default_config()),
    "one tile": Tiling.default_config().set(
        rule=Pinpoints.default_config().set(grids=((1, 1), (2, 1))), overview_of_one_tile=True
    ),
}


@pytest.mark.parametrize("name", TILINGS)
def test_the_exported_processor_shows_the_views_of_training(name, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    tokenizer = Tokenizer.default_config().instantiate()
    cfg = tiny().set(image_token=tokenizer.image_token)
    cfg.decoder.vocab_size = tokenizer.vocab_size
    size, num_tokens = cfg.vision_encoder.image_size, cfg.connector.num_image_tokens
    tiling = TILINGS[name].set(tile_size=size).instantiate()
    export_mm1(
        store(draw(cfg), tmp_path / "ours"),
        model_parts(cfg),
        tmp_path / "hf",
        image_token=tokenizer.image_token,
        tokenizer=export_tokenizer(tokenizer),
        tiling=tiling.exported(),
        skip_comparison=True,
    )
    processor = AutoProcessor.from_pretrained(tmp_path / "hf", trust_remote_code=True)
    processor.save_pretrained(tmp_path / "again")
    processor = AutoProcessor.from_pretrained(tmp_path / "again", trust_remote_code=True)
    builder = ExampleBuilder(
        tokenizer, num_image_tokens=num_tokens, max_sequence_length=4096, max_images=99
    )
    builder.tiling = tiling
    transform = ImageTransform.default_config().set(image_size=size).instantiate()
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (*shape, 3), np.uint8) for shape in ((50, 90), (7, 5), (9, 9))]
    texts = ["Look: <image>what is it?", "One <image>or two<image>?", "<image><image><image>all?"]
    rows = []
    for text in texts:
        words = [part.strip() for part in text.split("<image>")]
        shown = pictures[: len(words) - 1]
        segments = [Text(words[0], scored=False)] if words[0] else []
        for picture, word in zip(shown, words[1:], strict=True):
            segments += [Image(picture), *([Text(word, scored=False)] if word else [])]
        example = builder.prompt(Document(tuple(segments)))
        inputs = processor(images=shown, text=text, return_tensors="np")
        assert inputs["input_ids"][0].tolist() == example.tokens.tolist()
        pixels = np.stack([transform(image) for image in example.images])
        encoder = cfg.vision_encoder
        expected = pixel_values(pixels, encoder.pixel_mean, encoder.pixel_std)
        np.testing.assert_allclose(inputs["pixel_values"], expected, atol=1e-6)
        rows.append((shown, text, len(example.tokens)))
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path / "hf", dtype=torch.float32, trust_remote_code=True, local_files_only=True
    )
    shown, texts, lengths = zip(*rows, strict=True)
    inputs = processor(images=list(shown), text=list(texts), return_tensors="pt")
    assert inputs["attention_mask"].sum(1).tolist() == list(lengths)
    assert model(**inputs).logits.shape[:2] == (3, max(lengths))
