"""Questions about images: `{"images", "question", "answer"}`; only the answer is scored."""

from mm1_jax.batch import Document, Image, Record, Text


def question_prompt(question: str) -> str:
    """Returns MM1's prompt for a question (appendix on evaluation); the answer follows it."""
    return f"Question: {question} Short answer:"


def question_document(record: Record) -> Document:
    """Returns the images, the question, and the answer."""
    images = tuple(Image(image) for image in record["images"])
    prompt = Text(question_prompt(record["question"]), scored=False)
    return Document((*images, prompt, Text(record["answer"])))
