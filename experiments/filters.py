"""Named filters for data conversion, for `python -m mm1_jax convert_records --filters=NAME`."""

from mm1_jax.data.ingest.filters import (
    AnswerTypes,
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
        "yes_no_answers": yes_no_answers(),
        "other_answers": other_answers(),
    }
