"""Tokenizers that come and go with weights."""

import json

import tokenizers
import transformers
from foreign_models import save

from mm1_jax.data.hf_tokenizer import HFTokenizer
from mm1_jax.data.tokenizer import SHIPPED_MODEL, Tokenizer
from mm1_jax.interop.tokenizers import export_tokenizer, import_tokenizer, stored_tokenizer
from mm1_jax.weights_folder import StoredParams
from tools import convert_checkpoint

TEXTS = ("two circles, and a red  square!", "naïve\n\n12", "Question: what digit is this?")


def write_json_tokenizer(folder):
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    trainer = tokenizers.trainers.BpeTrainer(show_progress=False, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.add_special_tokens(["<|end|>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|end|>"}))
    return tokenizer


def test_a_decoder_takes_its_tokenizer_along_and_there_is_room_for_the_image_token(tmp_path):
    """The way of an open model: import, and back as a plain one."""
    save("qwen3", tmp_path / "hf")
    library = write_json_tokenizer(tmp_path / "hf")
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    num_ids = library.get_vocab_size()
    assert config["vocab_size"] < num_ids
    arguments = [f"--source={tmp_path / 'hf'}", f"--output={tmp_path / 'ours'}"]
    assert convert_checkpoint.main(["import", *arguments]) == 0
    stored = StoredParams(tmp_path / "ours")
    tokenizer = stored_tokenizer(stored, tmp_path / "ours")
    rows = stored.shapes["decoder/embedding/weight"][0]
    assert tokenizer.image_token == num_ids
    assert tokenizer.vocab_size == rows == -(-(num_ids + 1) // 64) * 64
    arguments = [f"--checkpoint={tmp_path / 'ours'}", f"--output={tmp_path / 'back'}"]
    assert convert_checkpoint.main(["export", *arguments]) == 0
    back = transformers.AutoTokenizer.from_pretrained(tmp_path / "back")
    for text in TEXTS:
        assert back(text).input_ids == tokenizer.encode(text) == library.encode(text).ids
    assert back("<image>").input_ids == [tokenizer.image_token]
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "back")
    assert model.config.eos_token_id == tokenizer.eos
    assert model.generation_config.suppress_tokens
    assert "AutoModelForCausalLM" in (tmp_path / "back" / "README.md").read_text()


def test_a_sentencepiece_model_is_kept_and_plain_models_read_it_as_llamas(tmp_path):
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "tokenizer.model").write_bytes(SHIPPED_MODEL.read_bytes())
    imported = import_tokenizer(tmp_path / "hf", num_rows=0)
    tokenizer = imported.cfg.instantiate()
    assert type(tokenizer) is Tokenizer and list(imported.files) == ["tokenizer.model"]
    vocabulary = export_tokenizer(tokenizer)
    assert "tokenization_mm1.py" in vocabulary.files
    assert set(vocabulary.suppressed) == set(tokenizer.not_text)


def test_a_folder_without_a_tokenizer_has_none(tmp_path):
    assert import_tokenizer(tmp_path, num_rows=0) is None


def test_the_rows_of_a_decoder_are_kept_where_they_are_more_than_ids(tmp_path):
    write_json_tokenizer(tmp_path)
    imported = import_tokenizer(tmp_path, num_rows=1000)
    tokenizer = imported.cfg.instantiate()
    assert isinstance(tokenizer, HFTokenizer) and tokenizer.vocab_size == 1000
    content = json.loads(imported.files["tokenizer.json"])
    assert content["added_tokens"][-1]["id"] == tokenizer.image_token
