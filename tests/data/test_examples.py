import random

import numpy as np
import pytest

from mm1_jax.batch import Document, Image, Text
from mm1_jax.data.examples import ExampleBuilder
from mm1_jax.data.record_files import BadRecord

PIXELS = np.zeros((1, 1, 3), np.uint8)
WORDS = ("a", "red", "circle", "left", "of", "xyzzy", "7", "<image>", "\u00e9")


def random_document(rng: random.Random) -> Document:
    segments = []
    for _ in range(rng.randint(0, 8)):
        if rng.random() < 0.5:
            segments.append(Image(PIXELS))
        else:
            text = " ".join(rng.choices(WORDS, k=rng.randint(0, 6)))
            segments.append(Text(text, scored=rng.random() < 0.7))
    return Document(tuple(segments))


def documents(count: int = 200) -> list[Document]:
    rng = random.Random(0)
    return [random_document(rng) for _ in range(count)]


def reference(document: Document, tokenizer, num_image_tokens: int) -> list[tuple[int, bool]]:
    """Returns (token, is scored) for the whole sequence, by an independent implementation."""
    entries = [(tokenizer.bos, False)]
    for segment in document.segments:
        if isinstance(segment, Image):
            entries.extend([(tokenizer.image_token, False)] * num_image_tokens)
        else:
            entries.extend((i, segment.scored) for i in tokenizer.encode(segment.text))
    entries.append((tokenizer.eos, entries[-1][1]))
    return entries


def test_a_caption_becomes_the_documented_example(builder, tokenizer):
    two, circles = tokenizer.encode("two circles")
    example = builder.example(Document((Image(PIXELS), Text("two circles"))))
    image = tokenizer.image_token
    assert example.tokens.tolist() == [tokenizer.bos, *[image] * 4, two, circles]
    assert example.targets.tolist() == [0, 0, 0, 0, two, circles, tokenizer.eos]
    assert example.loss_mask.tolist() == [False] * 4 + [True] * 3


def test_targets_are_the_shifted_tokens_and_images_are_never_targets(builder, tokenizer):
    for document in documents():
        entries = reference(document, tokenizer, 4)
        example = builder.example(document)
        assert example.tokens.tolist() == [token for token, _ in entries[:-1]]
        image = tokenizer.image_token
        expected = [0 if token == image else token for token, _ in entries[1:]]
        assert example.targets.tolist() == expected
        assert example.loss_mask.tolist() == [scored for _, scored in entries[1:]]


def test_every_image_takes_num_image_tokens_positions(tokenizer):
    for num_image_tokens in (1, 4, 9):
        builder = ExampleBuilder(
            tokenizer,
            num_image_tokens=num_image_tokens,
            max_sequence_length=300,
            max_images=16,
        )
        for document in documents(50):
            example = builder.example(document)
            placeholders = int((example.tokens == tokenizer.image_token).sum())
            assert placeholders == num_image_tokens * len(document.images)
            assert example.images == document.images


def test_the_first_text_token_after_an_image_is_scored(builder, tokenizer):
    example = builder.example(Document((Text("a"), Image(PIXELS), Text("red"))))
    after = int(np.flatnonzero(example.tokens == tokenizer.image_token)[-1])
    assert example.loss_mask[after]
    assert [example.targets[after]] == tokenizer.encode("red")


def test_eos_is_scored_only_after_scored_text(builder, tokenizer):
    question = (Image(PIXELS), Text("what is it?", scored=False))
    assert builder.example(Document((*question, Text("red")))).loss_mask[-1]
    for segments in (question, (Text("red"), Image(PIXELS))):
        example = builder.example(Document(segments))
        assert example.targets[-1] == tokenizer.eos
        assert not example.loss_mask[-1]


@pytest.mark.parametrize(("room", "max_images"), [(6, 1), (9, 2), (17, 16), (30, 3), (40, 0)])
def test_a_truncated_document_is_a_prefix_with_whole_images(tokenizer, room, max_images):
    builder = ExampleBuilder(
        tokenizer, num_image_tokens=4, max_sequence_length=room, max_images=max_images
    )
    num_cut = 0
    for document in documents():
        whole = [token for token, _ in reference(document, tokenizer, 4)]
        example = builder.example(document)
        tokens, length = example.tokens.tolist(), len(example.tokens)
        assert 1 <= length <= room
        assert len(example.images) <= max_images
        assert tokens == whole[:length]
        assert tokens.count(tokenizer.image_token) == 4 * len(example.images)
        assert example.images == document.images[: len(example.images)]
        if length < len(whole) - 1:
            num_cut += 1
            # The document does not end here, so eos is not a target; no image is left without text.
            assert not example.loss_mask[-1] or example.targets[-1] != tokenizer.eos
            assert length == 1 or tokens[-1] != tokenizer.image_token or example.targets[-1] != 0
    assert num_cut > 10


def test_a_truncated_document_keeps_all_that_fits(tokenizer):
    builder = ExampleBuilder(tokenizer, num_image_tokens=4, max_sequence_length=10, max_images=1)
    red = tokenizer.encode("red")
    example = builder.example(Document((Image(PIXELS), Text("red " * 20))))
    assert len(example.tokens) == 10 and example.loss_mask.sum() == 6
    example = builder.example(Document((Image(PIXELS), Text("red"), Image(PIXELS), Text("red"))))
    assert len(example.images) == 1
    assert example.targets.tolist() == [0, 0, 0, 0, *red]


@pytest.mark.parametrize("room", [8, 20, 256])
def test_lengths_agree_with_the_example(tokenizer, room):
    builder = ExampleBuilder(tokenizer, num_image_tokens=4, max_sequence_length=room, max_images=3)
    whole = 0
    for document in documents():
        example = builder.example(document)
        assert builder.lengths(document) == (len(example.tokens), len(example.images))
        whole += len(reference(document, tokenizer, 4)) <= room + 1 and len(document.images) <= 3
    assert builder.num_truncated == 200 - whole


def test_lengths_are_computed_without_reading_pictures(builder):
    document = Document((Image(b"not a picture"), Text("red")))
    assert builder.lengths(document) == (6, 1)


def test_a_prompt_is_the_example_without_its_end(builder, tokenizer):
    document = Document((Image(PIXELS), Text("what is it?", scored=False)))
    prompt = builder.prompt(document)
    assert prompt.tokens.tolist() == builder.example(document).tokens.tolist()
    assert tokenizer.eos not in prompt.tokens
    assert not prompt.loss_mask.any()


def test_a_prompt_that_does_not_fit_is_an_error_that_names_the_fields(tokenizer):
    builder = ExampleBuilder(tokenizer, num_image_tokens=4, max_sequence_length=10, max_images=1)
    with pytest.raises(ValueError, match=r"max_sequence_length=10.*fewer shots"):
        builder.prompt(Document((Text("red " * 20),)))
    with pytest.raises(ValueError, match="max_images=1"):
        builder.prompt(Document((Image(PIXELS), Image(PIXELS))))


def test_a_row_without_room_for_an_image_is_an_error(tokenizer):
    with pytest.raises(ValueError, match=r"max_sequence_length=64.*num_image_tokens=64"):
        ExampleBuilder(tokenizer, num_image_tokens=64, max_sequence_length=64, max_images=1)


def test_a_text_only_model_reads_text_and_rejects_images(tokenizer):
    builder = ExampleBuilder(tokenizer, num_image_tokens=0, max_sequence_length=32, max_images=0)
    example = builder.example(Document((Text("a red circle"),)))
    expected = [tokenizer.bos, *tokenizer.encode("a red circle")]
    assert example.tokens.tolist() == expected and example.images == ()
    document = Document((Image(PIXELS), Text("a red circle")))
    for read in (builder.example, builder.lengths, builder.prompt):
        with pytest.raises(BadRecord, match="an image, and the model reads none"):
            read(document)
