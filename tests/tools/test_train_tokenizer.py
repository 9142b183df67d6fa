import importlib.util
from pathlib import Path

import pytest
import sentencepiece

TOOL = Path(__file__).parents[2] / "tools" / "train_tokenizer.py"
_spec = importlib.util.spec_from_file_location("train_tokenizer_tool", TOOL)
tool = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(tool)


def train(output: Path, *arguments: str) -> sentencepiece.SentencePieceProcessor:
    assert tool.main([f"--output={output}", "--max_characters=40000", *arguments]) == 0
    return sentencepiece.SentencePieceProcessor(model_file=str(output))


def test_of_a_config_the_words_that_its_documents_add_become_pieces(tmp_path):
    """Records of digits hold no "Question"; the documents that are made of them do."""
    model = train(tmp_path / "a.model", "--config=mm1_tiny", "--vocab_size=600")
    assert "▁Question" in model.encode("Question: which digit?", out_type=str)


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


def test_file_and_size_are_those_of_the_config(tmp_path):
    path = tmp_path / "c.model"
    arguments = [f"--config.input.tokenizer.{field}" for field in ("model_path", "num_pieces")]
    values = [f"{arguments[0]}={path}", f"{arguments[1]}=390", "--max_characters=40000"]
    assert tool.main(["--config=mm1_tiny", *values]) == 0
    assert sentencepiece.SentencePieceProcessor(model_file=str(path)).get_piece_size() == 390


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--output=FILE is needed"),
        (["--config=mm1_tiny"], "input.tokenizer.model_path is not set"),
        (["--data_dir={folder}", "--output={folder}/x"], "no folder of records"),
    ],
)
def test_what_is_missing_is_named(tmp_path, capsys, arguments, message):
    assert tool.main([argument.format(folder=tmp_path) for argument in arguments]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
