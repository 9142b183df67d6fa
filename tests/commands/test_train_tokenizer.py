import re
from pathlib import Path

import pytest
import sentencepiece

from mm1_jax.commands import train_tokenizer as tool
from mm1_jax.data.record_files import Manifest, RecordKind, ShardWriter


def train(output: Path, *arguments: str) -> sentencepiece.SentencePieceProcessor:
    assert tool.main([f"--output={output}", "--max_characters=40000", *arguments]) == 0
    return sentencepiece.SentencePieceProcessor(model_file=str(output))


def test_words_that_documents_add_to_records_become_pieces(tmp_path):
    """Records of digits do not contain "Question"; the documents made from them do."""
    model = train(tmp_path / "a.model", "--config=mm1_tiny", "--vocab_size=600")
    assert "\u2581Question" in model.encode("Question: which digit?", out_type=str)


def test_only_corpora_with_a_weight_are_read(tmp_path, capsys):
    train(
        tmp_path / "a.model",
        "--config=mm1_tiny",
        "--vocab_size=400",
        "--config.input.streams.0.corpora.0.weight=0",
    )
    with_weight = capsys.readouterr().err
    train(tmp_path / "b.model", "--config=mm1_tiny", "--vocab_size=400")
    assert len(capsys.readouterr().err.splitlines()) == len(with_weight.splitlines()) + 1


def test_file_and_size_default_to_those_of_the_config(tmp_path):
    path = tmp_path / "c.model"
    arguments = [f"--config.input.tokenizer.{field}" for field in ("model_path", "num_pieces")]
    values = [f"{arguments[0]}={path}", f"{arguments[1]}=390", "--max_characters=40000"]
    assert tool.main(["--config=mm1_tiny", *values]) == 0
    assert sentencepiece.SentencePieceProcessor(model_file=str(path)).get_piece_size() == 390


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--output=FILE is required"),
        (["--config=mm1_tiny"], "input.tokenizer.model_path is not set"),
        (["--data_dir={folder}", "--output={folder}/x"], "no folder of records"),
    ],
)
def test_missing_inputs_are_named(tmp_path, capsys, arguments, message):
    assert tool.main([argument.format(folder=tmp_path) for argument in arguments]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("files", "vocab_size", "message"),
    [
        ({"a.txt": b"one two three"}, 100, "vocab_size=100: .* alone take 2[0-9]+ pieces"),
        ({"a.txt": b"", "b.txt": b" \n\n"}, 300, "there is no text in .*a.txt, .*b.txt"),
        ({"a.txt": b"caf\xe9"}, 300, "a.txt is not UTF-8"),
        ({"a.txt": b"one two", "b.txt": b"one\ncaf\xe9"}, 300, "b.txt is not UTF-8"),
        ({"a.txt": b"one two", "b.txt": None}, 300, "No such file or directory: .*b.txt"),
    ],
)
def test_texts_that_cannot_train_a_tokenizer_are_named(
    tmp_path, capsys, files, vocab_size, message
):
    for name, data in files.items():
        if data is not None:
            (tmp_path / name).write_bytes(data)
    output = tmp_path / "t.model"
    arguments = ["--text", *(str(tmp_path / name) for name in files), f"--output={output}"]
    assert tool.main([*arguments, f"--vocab_size={vocab_size}"]) == 2
    assert re.search(message, capsys.readouterr().err) and not output.exists()


def test_a_lone_surrogate_is_trained_on_as_it_is_encoded(tmp_path):
    (tmp_path / "text").mkdir()
    with ShardWriter(tmp_path / "text", "0.array_record") as writer:
        for text in ("some words and ", "half a pair \ud800 and more words", "\udc80"):
            writer.write({"id": text, "text": text * 9})
    Manifest(RecordKind.TEXT, (writer.shard,)).write(tmp_path / "text")
    model = train(tmp_path / "a.model", f"--data_dir={tmp_path}", "--vocab_size=300")
    # The lone surrogate becomes "?", which every model contains, and is in no piece.
    assert all(chr(c) not in model.id_to_piece(i) for i in range(300) for c in (0xD800, 0xDC80))
    assert "?" in model.encode("\ud800".encode("utf-8", "replace").decode(), out_type=str)


def test_a_byte_order_mark_is_not_text(tmp_path):
    (tmp_path / "a.txt").write_bytes("words ".encode("utf-8-sig") * 1 + b"words " * 50)
    model = train(tmp_path / "a.model", "--text", str(tmp_path / "a.txt"), "--vocab_size=290")
    assert not any("\ufeff" in model.id_to_piece(i) for i in range(model.get_piece_size()))
