"""Runs that train encoders: their exports, and MM1 runs that start from them by one field."""

import json

import jax
import numpy as np
import pytest
import transformers
from flax import nnx
from test_tokenizers import write_json_tokenizer

from experiments import mixtures, vision_encoders
from experiments.pretrain import mm1_tiny
from mm1_jax.checkpoints.initial_weights import InitialWeights
from mm1_jax.checkpoints.weights_folder import StoredParams, WeightsWriter, describe
from mm1_jax.data.pairs import PairInput, text_tokens
from mm1_jax.data.tokenizers.clip import BOS, EOS, CLIPTokenizer, _characters
from mm1_jax.data.tokenizers.hf import HFTokenizer
from mm1_jax.data.tokenizers.sentencepiece import Tokenizer
from mm1_jax.experiment import Experiment
from mm1_jax.interop.exporter import export_native, parts_of_weights
from mm1_jax.interop.importer import import_checkpoint
from mm1_jax.interop.mapping import flat_shapes, parameter_shapes
from mm1_jax.interop.native import EncoderFacts, facts_of_run, native_model, parts_of_model
from mm1_jax.interop.tokenizers import export_text_tokenizer, import_tokenizer
from mm1_jax.layers.attention import Pattern
from mm1_jax.layers.feed_forward import Activation
from mm1_jax.layers.norm import LayerNorm
from mm1_jax.models.aim import AIM
from mm1_jax.models.clip import CLIP
from mm1_jax.models.image_pooling import MAPPooling
from mm1_jax.models.text_encoder import TextPooling
from mm1_jax.models.vision_encoder import ClassToken
from mm1_jax.train.contrastive_loss import SoftmaxLoss
from mm1_jax.train.patch_loss import AIMLoss
from mm1_jax.train.trainer import Trainer

TOWER = {"model_dim": 16, "num_layers": 1, "num_heads": 2, "hidden_dim": 24}
LENGTH = 12


def experiment(model, loss, length):
    cfg = Experiment.default_config().set(
        model=model,
        input=PairInput.default_config().set(
            streams=mixtures.embedded_pictures(),
            batch_size=8,
            max_sequence_length=length,
            image_size=model.vision_encoder.image_size,
            num_workers=0,
        ),
        trainer=Trainer.default_config().set(max_steps=1, loss=loss.default_config()),
    )
    cfg.trainer.optimizer.set(learning_rate=1e-3, warmup_steps=1)
    return cfg


def clip_run():
    """The towers of a CLIP, which MM1 takes without its last norm."""
    model = CLIP.default_config().set(features_dim=12)
    norm = LayerNorm.default_config().set(eps=1e-5)
    model.vision_encoder.set(
        **TOWER,
        image_size=28,
        patch_size=14,
        class_token=ClassToken.default_config(),
        pre_norm=norm,
        final_norm=None,
    )
    model.vision_encoder.stack.layer.norm.eps = 1e-5
    model.text_encoder.set(**TOWER)
    return experiment(model, SoftmaxLoss, LENGTH)


def aim_run():
    encoder = vision_encoders.aim_600m(Pattern.PREFIX).set(**TOWER, image_size=28)
    encoder.hidden_dim = 64
    model = AIM.default_config().set(vision_encoder=encoder)
    model.pixel_head.set(model_dim=16, num_layers=1, hidden_dim=24)
    return experiment(model, AIMLoss, 0)


@pytest.fixture(scope="module", params=[clip_run, aim_run])
def run(request, tmp_path_factory):
    """The resolved config of a run of one step, and its output folder."""
    folder = tmp_path_factory.mktemp(request.param.__name__)
    cfg = Experiment.resolve(request.param())
    cfg.instantiate(output_dir=folder).run()
    return cfg, folder


def test_an_export_of_a_run_is_read_back_bit_for_bit(run, tmp_path):
    cfg, folder = run
    stored, parts = StoredParams(folder), parts_of_model(cfg.model)
    tokenizer = cfg.input.tokenizer.instantiate()
    facts, files, output = None, None, tmp_path / "export"
    if "text_encoder" in parts:
        facts = facts_of_run(cfg, tokenizer, "export")
        files = export_text_tokenizer(tokenizer, max_length=LENGTH)
    model = native_model(parts, facts=facts)
    assert not isinstance(model, str), model
    # The tokenizer ends texts by the id 2, which a CLIPModel does not support.
    assert model.library == ("open_clip" if "text_encoder" in parts else "aim")
    export_native(stored, model, parts, output, tokenizer=files)
    import_checkpoint(output, tmp_path / "back")
    back = StoredParams(tmp_path / "back")
    others = {path for path in stored.shapes if path.startswith("pixel_head/")}
    assert back.shapes.keys() == stored.shapes.keys() - others
    for path in back.shapes:
        assert back.read(path).tobytes() == stored.read(path).tobytes(), path
    encoder = parts_of_weights(back)["vision_encoder"]
    assert encoder.pixel_mean == cfg.model.vision_encoder.pixel_mean
    if files is None:
        processor = json.loads((output / "preprocessor_config.json").read_text())
        assert processor["size"] == {"shortest_edge": 32}
        assert processor["crop_size"] == {"height": 28, "width": 28}
        return
    config = json.loads((output / "open_clip_config.json").read_text())
    assert config["preprocess_cfg"]["resize_mode"] == "squash"
    assert config["model_cfg"]["text_cfg"]["hf_tokenizer_name"] == "export"
    assert_reads_texts(transformers.AutoTokenizer.from_pretrained(output), tokenizer)


def assert_reads_texts(theirs, ours):
    """Asserts that rows have the tokens of training, and texts that are too long keep their eos."""
    for text in (
        "a red circle",
        "two circles, and a red square beside a blue one",
        "\u00e9t\u00e9",
    ):
        row = theirs(text, padding="max_length", truncation=True, max_length=LENGTH).input_ids
        tokens = text_tokens(ours, text, LENGTH)
        assert row == tokens + [ours.eos] * (LENGTH - len(tokens)), text


def test_a_hugging_face_tokenizer_is_exported_with_begin_and_end(tmp_path):
    (tmp_path / "source").mkdir()
    write_json_tokenizer(tmp_path / "source")
    path = str(tmp_path / "source" / "tokenizer.json")
    tokenizer = HFTokenizer.default_config().set(model_path=path).instantiate()
    for name, content in export_text_tokenizer(tokenizer, max_length=LENGTH).files.items():
        (tmp_path / name).write_bytes(content)
    assert_reads_texts(transformers.AutoTokenizer.from_pretrained(tmp_path), tokenizer)


def test_the_tokenizer_of_clip_is_exported_and_imported_by_its_two_files(tmp_path):
    characters = [*_characters().values()]
    merges = ["r e", "re d</w>", "c i"]
    pieces = [*characters, *(f"{each}</w>" for each in characters)]
    pieces += [*(merge.replace(" ", "") for merge in merges), BOS, EOS]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    (tmp_path / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
    path = str(tmp_path / "vocab.json")
    tokenizer = CLIPTokenizer.default_config().set(model_path=path, num_pieces=None).instantiate()
    output = tmp_path / "export"
    output.mkdir()
    for name, content in export_text_tokenizer(tokenizer, max_length=LENGTH).files.items():
        (output / name).write_bytes(content)
    theirs = transformers.AutoTokenizer.from_pretrained(output)
    assert isinstance(theirs, transformers.CLIPTokenizer)
    assert_reads_texts(theirs, tokenizer)
    imported = import_tokenizer(output, len(pieces))
    assert imported.cfg.instantiate().fingerprint() == tokenizer.fingerprint()


def test_a_siglip_of_ours_is_read_by_transformers_with_its_tokenizer_and_processor(tmp_path):
    model = CLIP.default_config().set(
        features_dim=16,
        image_projection=None,
        image_pooling=MAPPooling.default_config(),
        initial_bias=-10.0,
    )
    model.vision_encoder.set(**TOWER, image_size=28, patch_size=14)
    model.vision_encoder.patch_embedding.bias = True
    text = model.text_encoder.set(
        **TOWER, max_length=LENGTH, vocab_size=320, pooling=TextPooling.LAST
    )
    text.projection.bias = True
    text.stack.layer.attention.pattern = Pattern.BIDIRECTIONAL
    parts = parts_of_model(model)
    rng = np.random.default_rng(0)
    state = nnx.state(model.instantiate(rngs=nnx.Rngs(params=0)), nnx.Param)
    shapes = flat_shapes(nnx.to_pure_dict(state))
    writer = WeightsWriter(
        tmp_path / "ours", shapes, dict.fromkeys(shapes, np.dtype(np.float32)), {}
    )
    for path, shape in shapes.items():
        writer.write(path, (), np.asarray(0.3 * rng.standard_normal(shape), np.float32))
    describe(tmp_path / "ours", {})
    tokenizer = Tokenizer.default_config().instantiate()
    facts = EncoderFacts(has_bias=True, eos=tokenizer.eos, resize="squash")
    exported = export_native(
        StoredParams(tmp_path / "ours"),
        native_model(parts, facts=facts),
        parts,
        tmp_path / "hf",
        tokenizer=export_text_tokenizer(tokenizer, max_length=LENGTH, padding_token=0),
    )
    assert exported.model_type == "siglip" and exported.comparison.is_good
    processor = transformers.AutoProcessor.from_pretrained(tmp_path / "hf")
    picture = rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)
    inputs = processor(images=picture, text=["a circle"], padding="max_length", return_tensors="pt")
    assert inputs.pixel_values.shape == (1, 3, 28, 28) and inputs.input_ids.shape == (1, LENGTH)
    assert (inputs.input_ids == 0).any()


def loaded(cfg, folder):
    """Loads the encoder of an MM1 from the output folder of a run."""
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = {
        path: jax.ShapeDtypeStruct(shape, np.float32, sharding=place)
        for path, shape in parameter_shapes(cfg).items()
    }
    weights = InitialWeights.default_config().set(path=str(folder)).instantiate()
    return weights.load("vision_encoder", shapes, cfg)


def test_an_mm1_starts_from_the_encoder_of_a_run_by_one_field(run):
    cfg, folder = run
    mm1 = Experiment.resolve(mm1_tiny()).model
    mm1.vision_encoder = cfg.model.vision_encoder.clone()
    mm1.vision_encoder.stack.layer.attention.pattern = Pattern.BIDIRECTIONAL
    stored = StoredParams(folder)
    params = loaded(mm1, folder)
    assert params.keys() == {p for p in stored.shapes if p.startswith("vision_encoder/")}
    for path, value in params.items():
        np.testing.assert_array_equal(value, stored.read(path), path)
    other = mm1.clone()
    other.vision_encoder.stack.layer.feed_forward.activation = Activation.SILU
    with pytest.raises(
        ValueError, match=r"feed_forward\.activation is 'Activation\.SILU', but was"
    ):
        loaded(other, folder)
    other = mm1.clone()
    norm = other.vision_encoder.final_norm
    other.vision_encoder.final_norm = None if norm is not None else LayerNorm.default_config()
    with pytest.raises(ValueError, match=r"(?s)missing in the (model|checkpoint):.*final_norm"):
        loaded(other, folder)
