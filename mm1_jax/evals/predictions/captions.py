"""Captions: COCO, NoCaps, TextCaps."""

from collections.abc import Sequence
from pathlib import Path

from mm1_jax.evals.metrics.captions import caption_scores, whitespace_tokenize
from mm1_jax.evals.metrics.java_captions import java_caption_score
from mm1_jax.evals.predictions.base import Metrics, Scorer, ScoringJob
from mm1_jax.evals.predictions.records import Record, by_key, read_json, read_records

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
        return self._annotations_of(path, job) is None and "refs" not in read_json(path)

    def _captions(self, path: Path, job: ScoringJob) -> tuple[dict[str, str], dict[str, list[str]]]:
        """The caption of each image, and its references."""
        content = read_json(path)
        if isinstance(content, dict) and "refs" in content:
            whole = Record(content, str(path))
            predicted = whole.get("pred", expected="an object of captions by image")
            refs = Record(whole.get("refs", expected="an object of lists"), f"{path}, 'refs'")
            pred = Record(predicted, f"{path}, 'pred'")
            references = {key: refs.texts(key) for key in predicted}
            return {key: pred.texts(key)[0] for key in predicted}, references
        annotations = self._annotations_of(path, job)
        if annotations is None:
            raise ValueError(
                f"{path}: the captions are without references; give --annotations=FILE, for the "
                "demo of COCO its annotations/captions_val2014.json"
            )
        references = {}
        for record in read_records(annotations):
            references.setdefault(record.key("image_id"), []).append(record.text("caption"))
        records = by_key(read_records(path), "image_id")
        predictions = {key: record.text("caption") for key, record in records.items()}
        for key, record in records.items():
            if key not in references:
                raise ValueError(
                    f"{record.where}: {annotations} has no caption of image {key!r}; give the "
                    "annotations of the split that was described"
                )
        if len(predictions) < len(references):
            job.notes.append(
                f"{path}: {len(predictions)} of the {len(references)} images of {annotations} are "
                "described, and these alone are scored, as the official demo does"
            )
        return predictions, references
