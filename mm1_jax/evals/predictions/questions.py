"""Questions with short answers: VQAv2, TextVQA, VizWiz, OK-VQA, GQA, documents and charts."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from mm1_jax.evals.metrics import vqa
from mm1_jax.evals.metrics.answers import mean
from mm1_jax.evals.metrics.short_answers import anls, gqa_correct, relaxed_correct
from mm1_jax.evals.predictions.base import Metrics, Scorer, ScoringJob
from mm1_jax.evals.predictions.records import Record, is_missing

# How right an answer is, 0 to 1, given the references.
Rule = Callable[[str, list[str]], float]

_IDS = ("question_id", "questionId", "id")


def reply(prediction: Record, reference: Record, *others: str) -> str:
    """Returns the model's answer; `others` are further names for it in a file without references.

    A field that is null is an error, even if another one has a text: in a file that holds the
    references too, that text may be one of them.
    """
    names = ("prediction",) if prediction is reference else ("prediction", *others, "text")
    name = next((name for name in names if name in prediction.values), names[0])
    expected = "the model's answer, a text"
    if name in prediction.values and is_missing(prediction.values[name]):
        raise prediction.error((name,), f'{expected}; of an empty answer, ""', None)
    return prediction.text(*names, expected=expected)


def official(answer: str, answers: list[str]) -> float:
    return vqa.official_accuracy(answer, answers)


def official_lower(answer: str, answers: list[str]) -> float:
    return vqa.official_accuracy(vqa.lowered(answer), answers)


def official_processed(answer: str, answers: list[str]) -> float:
    return vqa.official_accuracy(vqa.evalai(answer), answers)


def processed(answer: str, answers: list[str]) -> float:
    return vqa.processed_accuracy(answer, answers)


class VqaScorer(Scorer):
    """VQA accuracy, as percentages, by the rules of one benchmark."""

    layout = (
        'records {"question_id", "prediction", "answers": [text or {"answer"}, ..]}; or '
        '{"question_id" (VizWiz: "image"), "answer"}, the official results, with annotations'
    )
    annotations = 'the official file: "annotations" or "data" with {"question_id", "answers"}'

    ids: tuple[str, ...] = _IDS

    def __init__(self, rules: Mapping[str, Rule]):
        self._rules = dict(rules)

    def score_file(self, path: Path, job: ScoringJob) -> Metrics:
        return self.score_pairs(job.paired(path, *self.ids))

    def score_pairs(self, pairs: Sequence[tuple[Record, Record]]) -> Metrics:
        expected = "the answers of the people asked: texts, or objects with an 'answer'"
        cases = [
            (reply(said, asked, "answer"), asked.texts("answers", expected=expected))
            for said, asked in pairs
        ]
        rules = self._rules | self.rules_of([asked for _, asked in pairs])
        return {"n": len(cases)} | {
            name: 100 * mean([rule(*case) for case in cases]) for name, rule in rules.items()
        }

    def rules_of(self, references: list[Record]) -> dict[str, Rule]:
        """Further rules, which depend on the annotations."""
        return {}


class VizWizScorer(VqaScorer):
    """Adds what the official code gives for answers that have no `answer_id`, as VizWiz's have not.

    That depends on how sure each person was, `answer_confidence`. Where the records have the
    answers alone, it is the mean of what they say of it themselves, if they do.
    """

    # A picture has one question, and the official files name that by the picture.
    ids = ("question_id", "questionId", "image", "id")
    _MISSING_ID = "acc_official_missing_answer_id"

    def score_pairs(self, pairs: Sequence[tuple[Record, Record]]) -> Metrics:
        scores = super().score_pairs(pairs)
        if all(self._people(asked) for _, asked in pairs):
            values = [100 * self._without_ids(*pair) for pair in pairs]
        elif all(said.has(self._MISSING_ID) for said, _ in pairs):
            values = [said.number(self._MISSING_ID) for said, _ in pairs]
        else:
            return scores
        return scores | {self._MISSING_ID: mean(values)}

    def _people(self, asked: Record) -> bool:
        people = asked.values["answers"]
        return isinstance(people, list) and all(isinstance(item, dict) for item in people)

    def _without_ids(self, said: Record, asked: Record) -> float:
        remarks = [
            sorted((name, str(value)) for name, value in item.items() if name[:6] != "answer")
            + [str(item.get("answer_confidence"))]
            for item in asked.values["answers"]
        ]

        def agreement(answer: str, answers: Sequence[str]) -> float:
            return vqa.agreement_without_ids(answer, answers, remarks)

        return vqa.official_accuracy(
            reply(said, asked, "answer"), asked.texts("answers"), agreement
        )


class OkVqaScorer(VqaScorer):
    """Adds the accuracy of stems, as the answers of OK-VQA are stemmed."""

    annotations = (
        'the official file, "annotations" with {"question_id", "answers": [{"answer", '
        '"raw_answer"}]}: the stems of words are learnt from it'
    )

    def rules_of(self, references: list[Record]) -> dict[str, Rule]:
        pairs = [
            (item["raw_answer"], item["answer"])
            for record in references
            for item in record.values["answers"]
            if isinstance(item, dict) and isinstance(item.get("raw_answer"), str)
        ]
        stem = vqa.OkVqaStemmer(vqa.OkVqaStemmer.learn(pairs))

        def stemmed(answer: str, answers: list[str]) -> float:
            return vqa.agreement(stem(vqa.evalai(answer)), [vqa.evalai(a) for a in answers])

        return {"acc_stemmed": stemmed}


class ShortAnswerScorer(Scorer):
    """The mean of one rule over questions, as a percentage."""

    layout = (
        'records {"question_id", "prediction", "answer" or "answers" or "label": the reference or '
        'references}; or {"questionId" or "question_id", "prediction" or "answer"} with annotations'
    )
    annotations = (
        'records {"question_id" or "questionId", "answer" or "answers" or "label"}, or the '
        "official object of these by id"
    )

    def __init__(self, name: str, rule: Rule):
        self._metric, self._rule = name, rule

    def score_file(self, path: Path, job: ScoringJob) -> Metrics:
        pairs = job.paired(path, *_IDS)
        values = [
            self._rule(
                reply(said, asked, "answer"),
                asked.texts("answers", "answer", "label", expected="the reference, or a list"),
            )
            for said, asked in pairs
        ]
        return {"n": len(values), self._metric: 100 * mean(values)}


def gqa(answer: str, references: list[str]) -> float:
    return float(gqa_correct(answer, references[0]))


def relaxed(answer: str, references: list[str]) -> float:
    return float(relaxed_correct(answer, references[0]))


VQAV2 = VqaScorer(
    {
        "acc_official": official,
        "acc_official_lower": official_lower,
        "acc_processed": processed,
    }
)
TEXTVQA = VqaScorer(
    {
        "acc_official_raw": official,
        "acc_official_lower": official_lower,
        "acc_official_processed": official_processed,
        "acc_m4c": processed,
    }
)
VIZWIZ = VizWizScorer(
    {
        "acc_official": official,
        "acc_official_lower": official_lower,
        "acc_processed": processed,
    }
)
OKVQA = OkVqaScorer({"acc_official": official, "acc_processed": processed})
GQA = ShortAnswerScorer("acc", gqa)
DOCUMENTS = ShortAnswerScorer("anls", anls)
CHARTS = ShortAnswerScorer("relaxed_acc", relaxed)
