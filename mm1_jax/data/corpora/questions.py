"""Questions about pictures: `{"images", "question", "answer"}`; only the answer is scored."""

from mm1_jax.batch import Document, Image, Record, Text


def question_prompt(question: str) -> str:
    """The words around a question (MM1, appendix on evaluation); the answer follows them."""
    return f"Question: {question} Short answer:"


def question_document(record: Record) -> Document:
    """The pictures, the question, and the answer."""
    images = tuple(Image(image) for image in record["images"])
    prompt = Text(question_prompt(record["question"]), scored=False)
    return Document((*images, prompt, Text(record["answer"])))
