"""Sentencepiece tokenizer of an MM1, with the same ids as in training."""

import shutil
from pathlib import Path
from typing import Any

import sentencepiece
from transformers import PreTrainedTokenizer


class MM1Tokenizer(PreTrainedTokenizer):
    """Converts text to ids and back; "<image>" is the image token, and texts begin with bos."""

    vocab_files_names = {"vocab_file": "tokenizer.model"}
    model_input_names = ["input_ids", "attention_mask"]

    def __init__(self, vocab_file: str, image_token: str = "<image>", **kwargs: Any):
        self._model = sentencepiece.SentencePieceProcessor(model_file=vocab_file)
        self._vocab_file = vocab_file
        kwargs.setdefault("clean_up_tokenization_spaces", False)
        kwargs.setdefault("spaces_between_special_tokens", False)
        # Generation appends to the end of each prompt, so shorter prompts are padded on the left.
        kwargs.setdefault("padding_side", "left")
        extra = kwargs.pop("additional_special_tokens", None) or []
        kwargs["additional_special_tokens"] = [*dict.fromkeys([*extra, image_token])]
        super().__init__(image_token=image_token, **kwargs)

    @property
    def vocab_size(self) -> int:
        return self._model.get_piece_size()

    def get_vocab(self) -> dict[str, int]:
        pieces = {self._model.id_to_piece(i): i for i in range(self.vocab_size)}
        return {**pieces, **self.added_tokens_encoder}

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        return [self.bos_token_id, *token_ids_0, *(token_ids_1 or [])]

    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        return 1

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        return self._model.decode_pieces(tokens)

    def save_vocabulary(
        self, save_directory: str, filename_prefix: str | None = None
    ) -> tuple[str, ...]:
        name = f"{filename_prefix}-" if filename_prefix else ""
        path = Path(save_directory, f"{name}tokenizer.model")
        if path.absolute() != Path(self._vocab_file).absolute():
            shutil.copyfile(self._vocab_file, path)
        return (str(path),)

    def _tokenize(self, text: str, **kwargs: Any) -> list[str]:
        return self._model.encode(text, out_type=str)

    def _convert_token_to_id(self, token: str) -> int:
        return self._model.piece_to_id(token)

    def _convert_id_to_token(self, index: int) -> str:
        return self._model.id_to_piece(index)
