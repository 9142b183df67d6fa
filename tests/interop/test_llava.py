"""LLaVA imports answer as in transformers, and an MM1 with LLaVA's parts exports as a LLaVA."""

import numpy as np
import PIL.Image
import pytest
import torch
from foreign_models import IMAGE_TOKEN, LLAVAS, save
from near_ties import assert_answers_of_transformers
from test_mm1_export import draw, store
from transformers import AutoProcessor, LlavaForConditionalGeneration

from experiments import sizes
from mm1_jax.batch import Image
from mm1_jax.checkpoints.weights_folder import StoredParams
from mm1_jax.data.images import ImageTransform
from mm1_jax.data.tokenizers.sentencepiece import Tokenizer
from mm1_jax.decoding.generate import generate
from mm1_jax.decoding.options import DecodingOptions
from mm1_jax.interop.compare import one_document_rows, pixel_values, random_images, with_params
from mm1_jax.interop.exporter import export_native, parts_of_weights
from mm1_jax.interop.families import Changes, make_parts, read_config
from mm1_jax.interop.importer import ParamsOf, import_checkpoint
from mm1_jax.interop.mm1 import model_parts
from mm1_jax.interop.native import native_llava
from mm1_jax.interop.tokenizers import export_tokenizer
from mm1_jax.models.connectors.average_pooling import AveragePooling
from mm1_jax.models.connectors.mlp import MLP
from mm1_jax.models.mm1 import MM1


def assert_same_answers(parts, params, folder, image_token=IMAGE_TOKEN):
    """Compares 64 greedy tokens for two prompts, each with a picture, with a LLaVA's."""
    encoder, num_patches = parts["vision_encoder"], parts["connector"].num_image_tokens
    cfg = MM1.default_config().set(**parts, image_token=image_token)
    images = random_images(encoder.image_size, seed=1)
    tokens = np.random.default_rng(1).integers(5, 64, (2, num_patches + 12))
    tokens[tokens == image_token] = 5
    tokens[:, 3 : 3 + num_patches] = image_token
    ours = generate(
        with_params(cfg, params),
        one_document_rows(tokens, images),
        DecodingOptions(64, eos=2, pad=0, forbidden=(1, image_token)),
    )
    model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    pixels = pixel_values(images, encoder.pixel_mean, encoder.pixel_std)
    assert_answers_of_transformers(
        ours,
        model,
        input_ids=torch.from_numpy(tokens),
        pixel_values=torch.from_numpy(pixels),
        max_new_tokens=64,
        do_sample=False,
        eos_token_id=2,
        pad_token_id=0,
        suppress_tokens=[0, 1, image_token],
    )


SLOW_LLAVAS = [pytest.param(n, marks=() if n == "llava" else pytest.mark.slow) for n in LLAVAS]


@pytest.mark.parametrize("name", SLOW_LLAVAS)
def test_64_greedy_tokens_after_an_import_equal_those_of_transformers(name, tmp_path):
    save(name, tmp_path / "hf")
    import_checkpoint(tmp_path / "hf", tmp_path / "ours", skip_comparison=True)
    stored = StoredParams(tmp_path / "ours")
    assert_same_answers(parts_of_weights(stored), ParamsOf(stored), tmp_path / "hf")


def of_llava(name, tied):
    """The config of an MM1 with the parts of a LLaVA and other sizes."""
    config = LLAVAS[name]().config.to_dict()
    parts = make_parts({**config, "model_type": "llava"}, Changes())
    cfg = MM1.default_config().set(**parts, image_token=IMAGE_TOKEN)
    cfg.vision_encoder.num_layers = 2
    cfg.decoder.set(num_layers=2, tied_embeddings=tied)
    return cfg


@pytest.mark.parametrize(
    ("name", "tied"),
    [("llava", True), pytest.param("llava of siglip", False, marks=pytest.mark.slow)],
)
def test_an_mm1_with_llavas_parts_exports_as_a_llava_and_round_trips(name, tied, tmp_path):
    cfg = of_llava(name, tied)
    params, parts = draw(cfg), model_parts(cfg)
    stored = store(params, tmp_path / "ours")
    model = native_llava(parts, IMAGE_TOKEN)
    exported = export_native(stored, model, parts, tmp_path / "hf")
    assert exported.model_type == "llava" and exported.comparison.is_good
    assert exported.comparison.scale > 0.1
    assert_same_answers(parts, params, tmp_path / "hf")
    import_checkpoint(tmp_path / "hf", tmp_path / "back", skip_comparison=True)
    back = StoredParams(tmp_path / "back")
    assert back.shapes.keys() == params.keys()
    for path, value in params.items():
        np.testing.assert_array_equal(back.read(path), value, path)


def test_the_exported_processor_makes_our_tokens_and_pixels(tmp_path):
    tokenizer = Tokenizer.default_config().instantiate()
    cfg = of_llava("llava", False).set(image_token=tokenizer.image_token)
    cfg.decoder.vocab_size = tokenizer.vocab_size
    parts, encoder = model_parts(cfg), cfg.vision_encoder
    export_native(
        store(draw(cfg), tmp_path / "ours"),
        native_llava(parts, tokenizer.image_token),
        parts,
        tmp_path / "hf",
        tokenizer=export_tokenizer(tokenizer),
        skip_comparison=True,
    )
    processor = AutoProcessor.from_pretrained(tmp_path / "hf")
    pixels = np.random.default_rng(0).integers(0, 256, (40, 24, 3), np.uint8)
    text = "Question: what is this?"
    inputs = processor(
        images=PIL.Image.fromarray(pixels), text=f"<image>{text}", return_tensors="np"
    )
    num_patches = cfg.connector.num_image_tokens
    expected = [tokenizer.bos, *[tokenizer.image_token] * num_patches, *tokenizer.encode(text)]
    assert inputs["input_ids"][0].tolist() == expected
    transform = ImageTransform.default_config().set(image_size=encoder.image_size).instantiate()
    square = transform(Image(pixels))[None]
    np.testing.assert_allclose(
        inputs["pixel_values"],
        pixel_values(square, encoder.pixel_mean, encoder.pixel_std),
        atol=1.01 / 255 / min(encoder.pixel_std),
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda cfg: None, "vision_encoder.final_norm"),
        (lambda cfg: cfg.vision_encoder.set(final_norm=None), "connector: LLaVA has an MLP"),
        (
            lambda cfg: cfg.set(
                connector=MLP.default_config().set(num_image_tokens=1)
            ).vision_encoder.set(final_norm=None),
            "num_image_tokens=1: LLaVA has a token for each of the",
        ),
        (
            lambda cfg: cfg.set(vision_encoder=None, connector=None),
            "a LLaVA has an encoder, a connector and a decoder",
        ),
    ],
)
def test_parts_that_llava_does_not_support_are_named(change, message):
    cfg = sizes.tiny().set(connector=AveragePooling.default_config().set(num_image_tokens=9))
    change(cfg)
    with pytest.raises(ValueError, match=message):
        native_llava(model_parts(cfg), 4)


def test_a_config_of_another_encoder_is_named(tmp_path):
    save("llava", tmp_path / "hf")
    config = read_config(tmp_path / "hf")
    config["vision_config"]["model_type"] = "dinov2"
    with pytest.raises(ValueError, match="vision_config.model_type='dinov2'"):
        make_parts(config, Changes())
