"""Named filters for data conversion, for `tools/convert_records.py --filters=NAME`."""

from collections.abc import Sequence

from mm1_jax.data.ingest.filters import (
    AnswerTypes,
    EvaluationOverlap,
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


def without_benchmarks(
    filters: Sequence[Filter.Config], images: Sequence[str]
) -> list[Filter.Config]:
    """Adds a filter for the images of benchmarks, before filters that count a page's images."""
    overlap = EvaluationOverlap.default_config().set(images=list(images))
    is_last = [cfg.klass is ImageCount for cfg in filters]
    place = is_last.index(True) if True in is_last else len(filters)
    return [*filters[:place], overlap, *filters[place:]]
