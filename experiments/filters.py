"""Named filters for data conversion, for `python -m mm1_jax convert_records --filters=NAME`."""

from mm1_jax.data.ingest.filters import (
    AnswerQuality,
    AnswerTypes,
    BlackImages,
    Filter,
    FrequentImages,
    ImageCount,
    ImageFilter,
    RepeatedImages,
)


def mm1_interleaved_filters() -> list[Filter.Config]:
    """MM1's filters of interleaved documents: by image size, shape and frequency, and page size.

    Documents are filtered last, by their remaining images. A caption counts as a page of one image.
    """
    return [
        ImageFilter.default_config(),
        RepeatedImages.default_config(),
        FrequentImages.default_config(),
        ImageCount.default_config(),
    ]


def no_filters() -> list[Filter.Config]:
    """No filters: all records are kept."""
    return []


def chat_filters() -> list[Filter.Config]:
    """Drops conversations with an unreadable or black image, a refusal, or repeated words.

    Slips of text and long pages are kept, as instructions are about documents and charts, too.
    """
    return [
        ImageFilter.default_config().set(
            min_side=4, min_aspect_ratio=1 / 50, max_aspect_ratio=50.0, url_words=()
        ),
        BlackImages.default_config(),
        AnswerQuality.default_config(),
    ]


def yes_no_answers() -> list[Filter.Config]:
    """Keeps questions (`--format=vqa`) with a yes/no answer."""
    return [AnswerTypes.default_config().set(keep=("yes/no",))]


def other_answers() -> list[Filter.Config]:
    """Keeps the questions that `yes_no_answers` discards."""
    return [AnswerTypes.default_config().set(keep=("number", "other"))]


def named_filters() -> dict[str, list[Filter.Config]]:
    return {
        "none": no_filters(),
        "mm1": mm1_interleaved_filters(),
        "chat": chat_filters(),
        "yes_no_answers": yes_no_answers(),
        "other_answers": other_answers(),
    }
