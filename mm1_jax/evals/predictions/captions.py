"""Captions of COCO, NoCaps and TextCaps."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mm1_jax.evals.answers import TextAnswer
from mm1_jax.evals.predictions.entries import Entry, by_key, read_entries
from mm1_jax.evals.predictions.files import read_file
from mm1_jax.evals.predictions.scorer import Metrics, Scorer, ScoringJob, prediction_files
from mm1_jax.evals.scoring.captions import caption_scores, whitespace_tokenize
from mm1_jax.evals.scoring.items import Item
from mm1_jax.evals.scoring.java_captions import java_caption_score

_ANNOTATIONS = "_annotations"
_RESULTS = "_results"


def _caption_files(folder: Path) -> list[Path]:
    return [path for path in prediction_files(folder) if not path.stem.endswith(_ANNOTATIONS)]


def _scorable(paths: Sequence[Path], job: ScoringJob) -> list[Path]:
    """Returns the files that have references. Others of a folder are left out, with a note."""
    found = []
    for path in paths:
        # The content is read again later, as a folder may hold many large files.
        if len(paths) > 1 and _lacks_references(path, job):
            job.notes.append(
                f"{path} is left out: its captions have no references; score it by itself, with "
                "--annotations=FILE"
            )
        else:
            found.append(path)
    return found


def _caption_metrics(items: Sequence[Item], job: ScoringJob) -> Metrics:
    """CIDEr-D, BLEU and ROUGE-L on PTB tokens, and on texts split at spaces as in nlg-eval."""
    metrics: Metrics = {"n": len(items), **caption_scores(items)}
    metrics |= {name: java_caption_score(name, items) for name in job.java_metrics}
    mode = "whitespace_tokens_nlg_eval_mode"
    return metrics | {mode: caption_scores(items, whitespace_tokenize)}


def _annotations_of(path: Path, job: ScoringJob) -> Path | None:
    beside = path.with_name(f"{path.stem.removesuffix(_RESULTS)}{_ANNOTATIONS}.json")
    return job.annotations or (beside if beside.exists() else None)


def _lacks_references(path: Path, job: ScoringJob) -> bool:
    return _annotations_of(path, job) is None and not _holds_references(read_file(path))


def _caption_items(path: Path, job: ScoringJob) -> list[Item]:
    """Returns the caption of each image with its references."""
    content = read_file(path)
    if _holds_references(content):
        refs, pred = _by_image(content, path, "refs"), _by_image(content, path, "pred")
        if extra := [key for key in pred.values if key not in refs.values]:
            raise ValueError(f"{path}: 'refs' has no captions of image {extra[0]!r} in 'pred'")
        described = [key for key in refs.values if key in pred.values]
        _note_part(path, path, len(described), len(refs.values), job)
        return [_item(key, _only_caption(pred, key), refs.texts(key)) for key in described]
    annotations = _annotations_of(path, job)
    if annotations is None:
        raise ValueError(
            f"{path}: the captions have no references; give --annotations=FILE, which for COCO's "
            "demo is annotations/captions_val2014.json"
        )
    references: dict[str, list[str]] = {}
    for entry in read_entries(annotations):
        references.setdefault(entry.key("image_id"), []).append(entry.text("caption"))
    entries = by_key(read_entries(path), "image_id")
    for key, entry in entries.items():
        if key not in references:
            raise ValueError(
                f"{entry.where}: {annotations} has no caption of image {key!r}; give the "
                "annotations of the split that was captioned"
            )
    _note_part(path, annotations, len(entries), len(references), job)
    # The official code tokenizes captions in the order of the annotations, and the tokens at the
    # end of a caption can depend on the next one.
    described = [key for key in references if key in entries]
    return [_item(key, entries[key].text("caption"), references[key]) for key in described]


def _item(key: str, caption: str, references: Sequence[str]) -> Item:
    return Item({"captions": references}, TextAnswer(caption), key)


def _note_part(
    path: Path, annotations: Path, num_described: int, num_images: int, job: ScoringJob
) -> None:
    if num_described < num_images:
        job.notes.append(
            f"{path}: has captions of {num_described} of the {num_images} images of {annotations}; "
            "only these are scored, as in the official demo"
        )


def _holds_references(content: Any) -> bool:
    return isinstance(content, dict) and "refs" in content


def _by_image(content: dict[str, Any], path: Path, name: str) -> Entry:
    expected = "an object by image"
    whole = Entry(content, str(path))
    values = whole.get(name, expected=expected)
    if not isinstance(values, dict) or not values:
        raise whole.error((name,), expected, values)
    return Entry(values, f"{path}, {name!r}")


def _only_caption(predictions: Entry, key: str) -> str:
    captions = predictions.texts(key)
    if len(captions) > 1:
        raise predictions.error((key,), "one caption", captions)
    return captions[0]


CAPTIONS = Scorer(
    layout=(
        'JSON list of {"image_id", "caption"}, the results of COCO, with annotations; or JSON '
        'object {"refs": {id: [caption, ..]}, "pred": {id: caption}}'
    ),
    annotations=(
        'JSON object with "annotations": list of {"image_id", "caption"}, as '
        "captions_val2014.json; without the flag, NAME_annotations.json beside NAME_results.json"
    ),
    read=_caption_items,
    metrics=_caption_metrics,
    files=_caption_files,
    scorable=_scorable,
)
