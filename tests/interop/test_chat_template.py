"""Exported chat templates: transformers gives conversations the ids of training."""

import json
import random
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest
import transformers
from chat_templates import TEMPLATES, write_template

from mm1_jax.batch import Image
from mm1_jax.data.chat_formats.base import Turn
from mm1_jax.data.chat_formats.hf import HFChatFormat
from mm1_jax.data.chat_formats.llava import LLaVAChatFormat
from mm1_jax.data.chat_formats.mm1 import MM1ChatFormat
from mm1_jax.data.examples import ExampleBuilder
from mm1_jax.data.grid_rules import FixedGrid
from mm1_jax.data.tiling import IndexMarks, Tiling
from mm1_jax.data.tokenizers.hf import HFTokenizer
from mm1_jax.data.tokenizers.sentencepiece import Tokenizer
from mm1_jax.interop.exporter import without_code, write_processor, write_tokenizer
from mm1_jax.interop.tokenizers import export_tokenizer, import_tokenizer

PICTURE = Image(np.zeros((1, 1, 3), np.uint8))
PLAIN = {
    "mm1": MM1ChatFormat.default_config(),
    "mm1 with a system text": MM1ChatFormat.default_config().set(system='Say "I\'m \\ \u00e9".'),
    "llava": LLaVAChatFormat.default_config(),
}
WORDS = ("a", "red", "circle?", "7", "\u00e9", "two  spaces", "it's")


@pytest.fixture(params=[*PLAIN, *TEMPLATES])
def made(request, tmp_path):
    """A tokenizer and a chat format."""
    if (cfg := PLAIN.get(request.param)) is not None:
        return Tokenizer.default_config().instantiate(), cfg.instantiate()
    folder = write_template(tmp_path / "hf", TEMPLATES[request.param])
    tokenizer = HFTokenizer.default_config().set(model_path=str(folder / "tokenizer.json"))
    chat_format = HFChatFormat.default_config().set(folder=str(folder))
    return tokenizer.instantiate(), chat_format.instantiate()


@pytest.fixture
def exported(made, tmp_path, monkeypatch):
    """The folder of the tokenizer, exported with the chat format."""
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = tmp_path / "exported"
    folder.mkdir()
    write_tokenizer(export_tokenizer(*made), {}, folder)
    return folder


def turns_at_random(rng: random.Random) -> list[Turn]:
    def text() -> str:
        return " ".join(rng.choices(WORDS, k=rng.randint(1, 5)))

    turns = []
    for _ in range(rng.randint(1, 3)):
        parts = rng.choice([(text(),), (PICTURE, text()), (text(), PICTURE, text()), (PICTURE,)])
        turns += [Turn("user", parts), Turn("assistant", (text(),))]
    return turns


def messages_of(turns) -> list[dict]:
    def content(part):
        is_text = isinstance(part, str)
        return {"type": "text", "text": part} if is_text else {"type": "image"}

    return [{"role": turn.role, "content": [*map(content, turn.parts)]} for turn in turns]


def assert_same_ids(tokenizer, chat_format, exported) -> None:
    """Compares conversations, and prompts for the next answer, with an exported tokenizer."""
    builder = ExampleBuilder(tokenizer, num_image_tokens=1, max_sequence_length=1024, max_images=16)
    theirs = transformers.AutoTokenizer.from_pretrained(exported, trust_remote_code=True)
    rng = random.Random(0)
    for _ in range(12):
        turns = turns_at_random(rng)
        example = builder.example(chat_format.document(turns))
        ours = [*example.tokens.tolist(), int(example.targets[-1])]
        assert theirs.apply_chat_template(messages_of(turns), return_dict=False) == ours
        prompt = builder.prompt(chat_format.document(turns[:-1], prompts_answer=True))
        found = theirs.apply_chat_template(
            messages_of(turns[:-1]), add_generation_prompt=True, return_dict=False
        )
        assert found == prompt.tokens.tolist()


def test_transformers_gives_conversations_the_ids_of_training(made, exported):
    assert_same_ids(*made, exported)


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("has_images", [False, True])
def test_exports_as_a_llama_or_a_llava_have_the_same_ids(name, has_images, tmp_path):
    tokenizer, chat_format = Tokenizer.default_config().instantiate(), PLAIN[name].instantiate()
    exported = without_code(export_tokenizer(tokenizer, chat_format), has_images)
    write_tokenizer(exported, {}, tmp_path)
    assert_same_ids(tokenizer, chat_format, tmp_path)


def test_generation_ends_at_the_stop_of_the_format_too(made, exported):
    tokenizer, chat_format = made
    config = json.loads((exported / "generation_config.json").read_text())
    stop = tokenizer.stop_token(chat_format.stop)
    ends = [tokenizer.eos] if stop == tokenizer.eos else [tokenizer.eos, stop]
    found = config["eos_token_id"]
    assert (found if isinstance(found, list) else [found]) == ends
    assert not set(ends) & set(config["suppress_tokens"])
    assert transformers.GenerationConfig.from_pretrained(exported).eos_token_id == found


@pytest.mark.parametrize("made", ["mm1", "llava", "vision", "vicuna"], indirect=True)
@pytest.mark.parametrize("marks", [None, IndexMarks.default_config()])
def test_the_processor_gives_pictures_their_places(made, exported, marks):
    """With and without tiles, whose marks are encoded by themselves."""
    tokenizer, chat_format = made
    encoder = SimpleNamespace(image_size=8, pixel_mean=(0.5,) * 3, pixel_std=(0.5,) * 3)
    parts = {"vision_encoder": encoder, "connector": SimpleNamespace(num_image_tokens=3)}
    tiling = Tiling.default_config().set(rule=FixedGrid.default_config(), marks=marks, tile_size=8)
    shown = None if marks is None else tiling.instantiate()
    write_processor(parts, "stretch", None if shown is None else shown.exported(), exported)
    processor = transformers.AutoProcessor.from_pretrained(exported, trust_remote_code=True)
    builder = ExampleBuilder(
        tokenizer,
        num_image_tokens=3,
        max_sequence_length=4096,
        max_images=64,
        tiling=shown,
    )
    rng = random.Random(2)
    for _ in range(4):
        turns = turns_at_random(rng)[:-1]
        messages = messages_of(turns)
        for message in messages:
            for part in message["content"]:
                if part["type"] == "image":
                    part["image"] = PIL.Image.fromarray(PICTURE.data)
        theirs = processor.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=True
        )
        prompt = builder.prompt(chat_format.document(turns, prompts_answer=True))
        assert theirs["input_ids"] == [prompt.tokens.tolist()]
        assert len(theirs.get("pixel_values", ())) == len(prompt.images)


def test_an_export_is_read_back_with_the_same_ids(made, exported):
    tokenizer, chat_format = made
    imported = import_tokenizer(exported, num_rows=0, image_token=tokenizer.image_token)
    assert imported.files["chat_template.jinja"].decode() == chat_format.jinja()
    back = imported.cfg.instantiate()
    folder = HFChatFormat.default_config().set(folder=str(exported))
    formats = {tokenizer: chat_format, back: folder.instantiate()}
    rng = random.Random(1)
    turns = [turns_at_random(rng) for _ in range(6)]
    ours, theirs = (
        [
            ExampleBuilder(each, num_image_tokens=4, max_sequence_length=1024, max_images=16)
            .example(format.document(one))
            .tokens.tolist()
            for one in turns
        ]
        for each, format in formats.items()
    )
    assert ours == theirs
