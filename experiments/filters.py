"""Filters of foreign data by name, for `tools/convert_records.py --filters=NAME`."""

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
    """MM1's, of its interleaved documents: small, odd, decorative and frequent images, page size.

    Documents are judged last, by the images that are left. On captions they work as well, where
    each is a page of one image.
    """
    return [
        ImageFilter.default_config(),
        RepeatedImages.default_config(),
        FrequentImages.default_config(),
        ImageCount.default_config(),
    ]


def no_filters() -> list[Filter.Config]:
    """None: all records stay."""
    return []


def yes_no_answers() -> list[Filter.Config]:
    """Of questions (`--format=vqa`), those that are answered with yes or no."""
    return [AnswerTypes.default_config().set(keep=("yes/no",))]


def other_answers() -> list[Filter.Config]:
    """Of questions, those that `yes_no_answers` drops."""
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
    """The filters, and one more for the images of benchmarks; before those that judge documents."""
    overlap = EvaluationOverlap.default_config().set(images=list(images))
    is_last = [cfg.klass is ImageCount for cfg in filters]
    place = is_last.index(True) if True in is_last else len(filters)
    return [*filters[:place], overlap, *filters[place:]]
