"""Tokenizers that are imported and exported with weights."""

import json

import pytest
import tokenizers
import transformers
from foreign_models import save

from mm1_jax.checkpoints.weights_folder import StoredParams
from mm1_jax.commands import convert_checkpoint
from mm1_jax.data.tokenizers.hf import HFTokenizer
from mm1_jax.data.tokenizers.sentencepiece import SHIPPED_MODEL, Tokenizer
from mm1_jax.interop.tokenizers import export_tokenizer, import_tokenizer, stored_tokenizer

TEXTS = ("two circles, and a red  square!", "na\u00efve\n\n12", "Question: what digit is this?")


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


def test_a_decoder_keeps_its_tokenizer_and_has_room_for_the_image_token(tmp_path):
    """The path of an open model: imported, and exported as a plain checkpoint."""
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


def test_a_sentencepiece_model_is_kept_and_plain_exports_read_it_as_llamas(tmp_path):
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


def test_extra_rows_of_a_decoder_are_kept(tmp_path):
    write_json_tokenizer(tmp_path)
    imported = import_tokenizer(tmp_path, num_rows=1000)
    tokenizer = imported.cfg.instantiate()
    assert isinstance(tokenizer, HFTokenizer) and tokenizer.vocab_size == 1000
    content = json.loads(imported.files["tokenizer.json"])
    assert content["added_tokens"][-1]["id"] == tokenizer.image_token


CONFIG = {"model_type": "llama", "vocab_size": 302}


def write(folder, **files):
    """Writes JSON files, by their names without ".json"."""
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))


@pytest.fixture
def both(tmp_path):
    """A folder with a tokenizer.model, and a tokenizer.json of exactly the same pieces."""
    (tmp_path / "tokenizer.model").write_bytes(SHIPPED_MODEL.read_bytes())
    pieces = Tokenizer.default_config().instantiate().sentencepiece
    vocabulary = {pieces.id_to_piece(i): i for i in range(pieces.get_piece_size())}
    library = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    library.add_special_tokens(["<pad>", "<s>", "</s>", "<image>"])
    library.save(str(tmp_path / "tokenizer.json"))
    write(tmp_path, tokenizer_config={"eos_token": "</s>"})
    return tmp_path


def test_a_sentencepiece_model_is_preferred_if_tokenizer_json_adds_nothing(both):
    imported = import_tokenizer(both, num_rows=0)
    assert list(imported.files) == ["tokenizer.model"] and not imported.notes


def test_tokenizer_json_is_preferred_if_the_model_lacks_tokens(both):
    library = tokenizers.Tokenizer.from_file(str(both / "tokenizer.json"))
    library.add_special_tokens(["<|im_end|>"])
    library.save(str(both / "tokenizer.json"))
    write(both, tokenizer_config={"eos_token": "<|im_end|>"})
    imported = import_tokenizer(both, num_rows=0)
    assert "tokenizer.json" in imported.files
    assert "lacks 1 of its tokens, such as '<|im_end|>'" in imported.notes[0]
    tokenizer = imported.cfg.instantiate()
    assert tokenizer.eos == library.token_to_id("<|im_end|>") != tokenizer.image_token
    # Alone, the model does not suffice for such a checkpoint.
    (both / "tokenizer.json").unlink()
    write(both, added_tokens={"<|im_end|>": tokenizer.eos}, tokenizer_config={})
    with pytest.raises(ValueError, match=r"added_tokens.json: has '<\|im_end\|>' by id"):
        import_tokenizer(both, num_rows=0)


def test_a_model_of_another_library_is_ignored_for_tokenizer_json(both):
    (both / "tokenizer.model").write_bytes(b"IQ== 0\nIg== 1\n")
    imported = import_tokenizer(both, num_rows=0)
    assert "tokenizer.json" in imported.files and "not a sentencepiece model" in imported.notes[0]


def test_the_image_token_never_takes_the_row_of_another_token(tmp_path):
    library = write_json_tokenizer(tmp_path)
    first = library.get_vocab_size()
    for name, content in (
        ("added_tokens", {"<|im_start|>": first}),
        ("tokenizer_config", {"added_tokens_decoder": {str(first): {"content": "<|im_start|>"}}}),
        ("generation_config", {"eos_token_id": [2, first]}),
        ("config", {**CONFIG, "pad_token_id": first}),
    ):
        write(tmp_path, **{name: content})
        if name == "tokenizer_config":
            write(tmp_path, tokenizer_config={"eos_token": "<|end|>", **content})
        with pytest.raises(ValueError, match=f"{name}.json"):
            import_tokenizer(tmp_path, num_rows=first + 8)
        (tmp_path / f"{name}.json").unlink()
        write(tmp_path, tokenizer_config={"eos_token": "<|end|>"})
    imported = import_tokenizer(tmp_path, num_rows=first + 8)
    assert f"takes row {first} of {first + 8}" in imported.notes[0]
    with pytest.raises(ValueError, match="image_token_index=7, and the image token of"):
        import_tokenizer(tmp_path, num_rows=first + 8, image_token=7)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer_config", {"eos_token": "<|end|>", "bos_token": "<|end|>"}),
        ("special_tokens_map", {"eos_token": {"content": "<|end|>"}, "bos_token": "<|end|>"}),
        ("generation_config", {"eos_token_id": ["END", 5], "bos_token_id": "END"}),
        ("config", {**CONFIG, "eos_token_id": "END", "bos_token_id": "END"}),
    ],
)
def test_eos_is_read_from_the_same_files_as_in_transformers(name, content, tmp_path):
    library = write_json_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    with pytest.raises(ValueError, match="special_tokens_map.json, .* names the eos token"):
        import_tokenizer(tmp_path, num_rows=0)
    end = library.token_to_id("<|end|>")
    text = json.dumps(content).replace('"END"', str(end))
    (tmp_path / f"{name}.json").write_bytes(b"\xef\xbb\xbf" + text.encode())
    tokenizer = import_tokenizer(tmp_path, num_rows=0).cfg.instantiate()
    assert tokenizer.eos == tokenizer.bos == end


def test_files_that_disagree_are_named(tmp_path):
    write_json_tokenizer(tmp_path)
    # An id that is a piece of text is a class default and ends nothing.
    write(tmp_path, config={**CONFIG, "eos_token_id": 2}, generation_config={"eos_token_id": 2})
    notes = import_tokenizer(tmp_path, num_rows=0).notes
    assert [note.split()[0] for note in notes] == ["generation_config.json", "config.json"]
    write(tmp_path, tokenizer_config={"eos_token": ["<|end|>"]})
    with pytest.raises(ValueError, match=r"tokenizer_config.json: eos_token=\['<\|end\|>'\]"):
        import_tokenizer(tmp_path, num_rows=0)


def test_an_image_token_that_is_ordinary_text_is_rejected(tmp_path):
    library = write_json_tokenizer(tmp_path)
    library.add_tokens(["<image>"])
    library.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match="'<image>' is its token"):
        import_tokenizer(tmp_path, num_rows=0)
