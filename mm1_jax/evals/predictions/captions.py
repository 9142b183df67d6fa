"""Captions: COCO, NoCaps, TextCaps."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mm1_jax.evals.metrics.captions import caption_scores, whitespace_tokenize
from mm1_jax.evals.metrics.java_captions import java_caption_score
from mm1_jax.evals.predictions.base import Metrics, Scorer, ScoringJob
from mm1_jax.evals.predictions.files import read_file
from mm1_jax.evals.predictions.records import Record, by_key, read_records

_ANNOTATIONS = "_annotations"
_RESULTS = "_results"


class CaptionScorer(Scorer):
    """CIDEr-D, BLEU and ROUGE-L of PTB tokens, and of words between spaces as nlg-eval has them."""

    layout = (
        'JSON list of {"image_id", "caption"}, the results of COCO, with annotations; or JSON '
        'object {"refs": {id: [caption, ..]}, "pred": {id: caption}}'
    )
    annotations = (
        'JSON object with "annotations": list of {"image_id", "caption"}, as '
        "captions_val2014.json; without the flag, NAME_annotations.json beside NAME_results.json"
    )

    def files(self, folder: Path) -> list[Path]:
        return [path for path in super().files(folder) if not path.stem.endswith(_ANNOTATIONS)]

    def score(self, paths: Sequence[Path], job: ScoringJob) -> dict[str, Metrics]:
        scorable = []
        for path in paths:
            # The content is not kept: a folder may hold many large files.
            if len(paths) > 1 and self._lacks_references(path, job):
                job.notes.append(
                    f"{path} is left out: it has captions alone; score it by itself, with "
                    "--annotations=FILE"
                )
            else:
                scorable.append(path)
        return super().score(scorable, job)

    def score_file(self, path: Path, job: ScoringJob) -> Metrics:
        predictions, references = self._captions(path, job)
        scores: Metrics = {"n": len(predictions), **caption_scores(predictions, references)}
        for name in job.java_metrics:
            scores[name] = java_caption_score(name, predictions, references)
        scores["whitespace_tokens_nlg_eval_mode"] = caption_scores(
            predictions, references, whitespace_tokenize
        )
        return scores

    def _annotations_of(self, path: Path, job: ScoringJob) -> Path | None:
        beside = path.with_name(f"{path.stem.removesuffix(_RESULTS)}{_ANNOTATIONS}.json")
        return job.annotations or (beside if beside.exists() else None)

    def _lacks_references(self, path: Path, job: ScoringJob) -> bool:
        return self._annotations_of(path, job) is None and not _holds_references(read_file(path))

    def _captions(self, path: Path, job: ScoringJob) -> tuple[dict[str, str], dict[str, list[str]]]:
        """The caption of each image, and its references."""
        content = read_file(path)
        if _holds_references(content):
            refs, pred = _by_image(content, path, "refs"), _by_image(content, path, "pred")
            if extra := [key for key in pred.values if key not in refs.values]:
                raise ValueError(f"{path}: 'refs' has no caption of image {extra[0]!r} of 'pred'")
            described = [key for key in refs.values if key in pred.values]
            self._note_part(path, path, len(described), len(refs.values), job)
            predictions = {key: _only_caption(pred, key) for key in described}
            return predictions, {key: refs.texts(key) for key in described}
        annotations = self._annotations_of(path, job)
        if annotations is None:
            raise ValueError(
                f"{path}: the captions are without references; give --annotations=FILE, for the "
                "demo of COCO its annotations/captions_val2014.json"
            )
        references: dict[str, list[str]] = {}
        for record in read_records(annotations):
            references.setdefault(record.key("image_id"), []).append(record.text("caption"))
        records = by_key(read_records(path), "image_id")
        for key, record in records.items():
            if key not in references:
                raise ValueError(
                    f"{record.where}: {annotations} has no caption of image {key!r}; give the "
                    "annotations of the split that was described"
                )
        self._note_part(path, annotations, len(records), len(references), job)
        # In the order of the annotations, as the official code reads the captions: the tokens at
        # the end of one depend on the next.
        described = [key for key in references if key in records]
        return (
            {key: records[key].text("caption") for key in described},
            {key: references[key] for key in described},
        )

    def _note_part(
        self, path: Path, annotations: Path, num_described: int, num_images: int, job: ScoringJob
    ) -> None:
        if num_described < num_images:
            job.notes.append(
                f"{path}: {num_described} of the {num_images} images of {annotations} are "
                "described, and these alone are scored, as the official demo does"
            )


def _holds_references(content: Any) -> bool:
    return isinstance(content, dict) and "refs" in content


def _by_image(content: dict[str, Any], path: Path, name: str) -> Record:
    expected = "an object by image"
    whole = Record(content, str(path))
    values = whole.get(name, expected=expected)
    if not isinstance(values, dict) or not values:
        raise whole.error((name,), expected, values)
    return Record(values, f"{path}, {name!r}")


def _only_caption(predictions: Record, key: str) -> str:
    captions = predictions.texts(key)
    if len(captions) > 1:
        raise predictions.error((key,), "one caption", captions)
    return captions[0]
