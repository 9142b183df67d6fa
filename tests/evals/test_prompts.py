import numpy as np
import pytest

from mm1_jax.batch import Document, Image, Text
from mm1_jax.data.chat_formats.llava import LLaVAChatFormat
from mm1_jax.data.corpora import digits, scenes
from mm1_jax.data.corpora.conversations import ConversationDocument, conversation_document
from mm1_jax.data.corpora.embedded import Kind
from mm1_jax.data.examples import ExampleBuilder
from mm1_jax.data.tokenizers.sentencepiece import Tokenizer
from mm1_jax.evals.prompts import (
    ChatTask,
    QuestionTask,
    continuation,
    exemplar_indices,
    few_shot,
    reference,
    subset,
    text_of,
    without_answer,
)


def draw(num_records=20, shots=4, seed=0, benchmark="digits", query=3, exclude=None) -> list[int]:
    return exemplar_indices(
        num_records, shots, seed=seed, benchmark=benchmark, query=query, exclude=exclude
    )


@pytest.mark.parametrize("query", range(5))
def test_exemplars_are_different_records_and_never_the_query(query):
    drawn = draw(num_records=5, shots=4, query=query, exclude=query)
    assert sorted(drawn) == [i for i in range(5) if i != query]


def test_every_record_is_drawn_about_equally_often():
    counts = np.bincount(np.concatenate([draw(query=query) for query in range(2000)]), minlength=20)
    assert 300 < counts.min() <= counts.max() < 500


def test_exemplars_depend_on_seed_benchmark_query_and_shots_alone():
    assert draw() == draw()
    others = [draw(seed=1), draw(benchmark="scenes"), draw(query=4), draw(shots=5)[:4]]
    assert all(other != draw() for other in others)


def test_more_shots_than_records_are_refused():
    with pytest.raises(ValueError, match="shots=4, but there are only 3 records"):
        draw(num_records=4, shots=4, exclude=0)


def test_a_subset_is_fixed_sorted_and_at_most_all_records():
    assert subset(5, None, seed=0, benchmark="a") == subset(5, 9, seed=0, benchmark="a")
    chosen = subset(1000, 50, seed=0, benchmark="a")
    assert len(set(chosen)) == 50 and chosen == sorted(chosen) and chosen[-1] < 1000
    assert chosen == subset(1000, 50, seed=0, benchmark="a")
    assert chosen != subset(1000, 50, seed=1, benchmark="a")


@pytest.mark.parametrize("corpus", [digits.corpus, scenes.corpus])
@pytest.mark.parametrize("kind", [Kind.CAPTIONS, Kind.QUESTIONS])
def test_a_prompt_is_tokenized_like_a_training_document(corpus, kind):
    builder = ExampleBuilder(
        Tokenizer.default_config().instantiate(),
        num_image_tokens=4,
        max_sequence_length=256,
        max_images=8,
    )
    documents = [corpus(kind).instantiate(split="train").document(i) for i in range(10)]
    for document in documents:
        trained = builder.example(document)
        asked = builder.prompt(few_shot([], document))
        # The scored part starts where the prompt ends.
        length = len(asked.tokens)
        assert asked.tokens.tolist() == trained.tokens[:length].tolist()
        assert np.argmax(trained.loss_mask) == length - 1
        spoken = builder.tokenizer.encode(reference(document))
        assert trained.targets[length - 1 : -1].tolist() == spoken
    # Exemplars keep their answers and precede the query, in order.
    prompt = builder.prompt(few_shot(documents[:2], documents[2]))
    body = [builder.example(document).tokens[1:] for document in documents[:2]]
    assert (
        prompt.tokens[1:].tolist()
        == np.concatenate([*body, builder.prompt(without_answer(documents[2])).tokens[1:]]).tolist()
    )


def test_a_few_shot_prompt_has_the_pictures_and_answers_in_order():
    tasks = [
        Document((Image(bytes([i])), Text(f"q{i}", scored=False), Text(f"a{i}"))) for i in range(3)
    ]
    prompt = few_shot(tasks[:2], tasks[2])
    assert [image.data for image in prompt.images] == [b"\0", b"\1", b"\2"]
    assert text_of(prompt) == "q0 a0 q1 a1 q2"
    assert prompt.segments[-1] == Text("q2", scored=False)


@pytest.mark.parametrize(
    "document",
    [
        Document((Text("alone"),)),
        Document((Text("question", scored=False), Text("told", scored=False))),
        Document((Text("text"), Image(b""))),
    ],
)
def test_a_document_without_an_answer_at_its_end_is_refused(document):
    with pytest.raises(ValueError, match="must end with a scored text"):
        without_answer(document)


def test_joined_prompts_append_answers_to_the_preceding_text():
    image = Image(np.zeros((1, 1, 3), np.uint8))

    def task(question: str, answer: str) -> Document:
        return Document((image, Text(question, scored=False), Text(answer)))

    prompt = few_shot([task("p", "x"), task("q", "y")], task("r", "z"), joiner=" ", separator="\n")
    texts = [getattr(segment, "text", None) for segment in prompt.segments]
    assert texts == [None, "p x\n", None, "q y\n", None, "r"]


def test_braces_in_a_question_are_not_format_fields():
    record = {"images": [], "question": "what is {0} + {x}?", "answer": "y"}
    document = QuestionTask.default_config().instantiate()(record)
    assert document.segments[0].text == "Question: what is {0} + {x}? Short answer:"
    with pytest.raises(ValueError, match="must contain {question}"):
        QuestionTask.default_config().set(prompt="Question:").instantiate()


def test_chat_tasks_equal_training_conversations():
    image = np.zeros((1, 1, 3), np.uint8)
    record = {"images": [image], "question": "is <image> red?", "answer": "yes"}
    document = ChatTask.default_config().set(instruction="Be brief.").instantiate()(record)
    turns = [
        {"role": "user", "text": "is <image> red?\nBe brief."},
        {"role": "assistant", "text": "yes"},
    ]
    assert document == conversation_document({"images": [image], "turns": turns})
    blank = ChatTask.default_config().instantiate()(record | {"answer": ""})
    assert reference(blank) == ""


def test_chat_tasks_in_a_chat_format_are_turns_of_one_conversation():
    image = np.zeros((1, 1, 3), np.uint8)
    task = ChatTask.default_config().set(chat_format=LLaVAChatFormat.default_config())
    make = task.set(instruction="Be brief.").instantiate()
    solved = [
        make({"images": [image], "question": question, "answer": "yes"})
        for question in ("is <image> red?", "is it blue?")
    ]
    assert [reference(document) for document in solved] == ["yes", "yes"]
    turns = [
        {"role": "user", "text": "is <image> red?\nBe brief."},
        {"role": "assistant", "text": "yes"},
        {"role": "user", "text": "<image>is it blue?\nBe brief."},
        {"role": "assistant", "text": "yes"},
    ]
    training = ConversationDocument.default_config().set(
        chat_format=LLaVAChatFormat.default_config()
    )
    whole = training.instantiate()({"images": [image, image], "turns": turns})
    prompt = few_shot(solved[:1], solved[1])
    # All but the answer and its stop.
    assert prompt.segments == whole.segments[:-2]
    assert without_answer(solved[0]).segments == solved[0].segments[:-2]
    assert continuation(solved[0], "no") == " no"
    assert reference(make({"images": [], "question": "a", "answer": ""})) == ""
    with pytest.raises(ValueError, match="leave it None"):
        few_shot(solved[:1], solved[1], joiner=" ")
