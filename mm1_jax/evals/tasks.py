"""Tasks of a benchmark: each is a record of a corpus, the exemplars before it, and their prompt.

Tasks depend on the config alone, except where exemplars are chosen by features of the model.
"""

import functools
import hashlib
import weakref
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mm1_jax.batch import Document, Image, Record
from mm1_jax.data.corpora.base import Corpus
from mm1_jax.data.images import BadImage
from mm1_jax.data.tokenizers.sentencepiece import Tokenizer
from mm1_jax.evals.exemplars import (
    ComparedRecords,
    Features,
    SimilarExemplars,
    read_features,
    write_features,
)
from mm1_jax.evals.prompts import exemplar_indices, few_shot, reference, subset, without_answer
from mm1_jax.models.mm1 import MM1
from mm1_jax.multihost import distributed


@dataclass(frozen=True)
class Task:
    """A record to ask, its document with the answer, and the exemplars before it.

    Attributes:
        prompt: The text and pictures that the model sees.
        key: The id of the task within its benchmark.
    """

    record: Record
    document: Document
    exemplars: tuple[Document, ...]
    prompt: Document
    key: str = ""


class Tasks:
    """A sequence of tasks, each built on access, since all pictures would not fit into memory.

    Attributes:
        places: Indices into the records that the benchmark could ask.
    """

    def __init__(self, make: Callable[[int], Task], places: Sequence[int]):
        self._make, self.places = make, places

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Task:
        return self._make(self.places[index])

    def __iter__(self) -> Iterator[Task]:
        return map(self._make, self.places)


class _PreparedFeatures(NamedTuple):
    """Features computed by a model.

    Attributes:
        model: A weak reference, which does not keep the model alive.
        rows: Row of `queries` by place.
    """

    model: weakref.ReferenceType
    rows: Mapping[int, int]
    queries: Features
    support: Features


class TaskMaker:
    """Builds the tasks of a benchmark from its config.

    Queries come from the test split of the corpus, exemplars from `exemplar_split`. A place is an
    index into the records that the benchmark could ask.
    """

    def __init__(self, cfg: Any, *, tokenizer: Tokenizer, pixels: Callable[[Image], np.ndarray]):
        self._cfg, self._tokenizer, self._pixels = cfg, tokenizer, pixels
        self.queries: Corpus = cfg.corpus.instantiate(split="test")
        self.support: Corpus = cfg.corpus.instantiate(split=cfg.exemplar_split)
        self._similar: SimilarExemplars | None = None
        if cfg.exemplars is not None:
            self._check_similar()
            self._similar = cfg.exemplars.instantiate()
        self._features: _PreparedFeatures | None = None
        self._check_records()

    @property
    def num_records(self) -> int:
        """The number of records that could be asked."""
        return len(self._query_indices)

    def fingerprint(self) -> str:
        """Digest of the documents that are asked and of those that exemplars are drawn from."""
        found = f"{self.queries.fingerprint()} {self.support.fingerprint()}"
        if self._reasons:
            texts = [self.support.source[i].get("rationale", "") for i in self._support_indices]
            digest = hashlib.blake2b(repr(texts).encode("utf-8", "replace"), digest_size=8)
            found += f" rationales={digest.hexdigest()}"
        return found

    def key(self, place: int) -> str:
        """Returns the id of the record at a place."""
        query = self._query_indices[place]
        return str(self.queries.source[query].get("id", query))

    def tasks(self, shots: int) -> Tasks:
        """Returns the tasks at a number of shots, the same in every run and on every host.

        If exemplars are chosen by features, `prepare` must be called first.
        """
        cfg = self._cfg
        limit = cfg.num_few_shot_examples if shots else cfg.num_examples
        places = subset(self.num_records, limit, seed=cfg.seed, benchmark=cfg.name)
        return Tasks(functools.partial(self.task, shots), places)

    def task(self, shots: int, place: int) -> Task:
        """Returns the task at a place. Raises ValueError if an exemplar has no answer."""
        cfg = self._cfg
        query = self._query_indices[place]
        exemplars = self._exemplars(shots, place)
        if any(not reference(exemplar).strip() for exemplar in exemplars):
            raise ValueError(
                f"{cfg.name}: an exemplar of task {self.key(place)!r} has no answer; use exemplars "
                "from a split that is published with answers"
            )
        if self._reasons and shots:
            self._check_rationales(shots, place)
        record, document = self.queries.source[query], self.queries.document(query)
        prompt = few_shot(
            exemplars,
            document,
            joiner=cfg.answer_joiner,
            separator=cfg.exemplar_separator or "",
            num_tiled=cfg.num_tiled_exemplars,
        )
        return Task(record, document, tuple(exemplars), prompt, self.key(place))

    def check_keys(self, tasks: Tasks) -> None:
        """Raises ValueError if two records have the same key, as answers are stored by key."""
        counts = Counter(map(self.key, tasks.places))
        if repeated := [key for key, count in counts.items() if count > 1]:
            raise ValueError(
                f"{self._cfg.name}: {len(repeated)} ids of corpus {self._cfg.corpus.name!r} "
                f"occur more than once, the first {repeated[0]!r}; give each record a unique id, "
                "or no record an id"
            )

    def describe_exemplars(self) -> str:
        """Describes for people to read how exemplars are chosen."""
        cfg = self._cfg
        number = f"{len(self._support_indices)} records"
        if cfg.exemplars_of is not None:
            first, *rest = (cfg.exemplars_of.__doc__ or cfg.exemplars_of.__name__).strip(".")
            return first.lower() + "".join(rest)
        if cfg.exemplars is None:
            return f"exemplars at random for each task (seed {cfg.seed}) from {number}"
        features = cfg.exemplars.features_file or "the model's vision encoder"
        return f"exemplars most similar to the query by {features}, best last, from {number}"

    def prepare(
        self,
        model: MM1,
        shots: int,
        *,
        cache: Path | None = None,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        """Computes the features that the choice of exemplars needs, once per model.

        Args:
            cache: A file that keeps the features for other runs.
            about: Facts that identify the features; a cache with other facts is not used.
        """
        if self._similar is None or not shots:
            return
        if self._features is not None and self._features.model() is model:
            return
        places = self.tasks(shots).places
        about = {**(about or {}), "places": zlib.crc32(repr(list(places)).encode())}
        found = None if cache is None else read_features(cache, about)
        if found is None:
            queries, support = (
                ComparedRecords(
                    [str(corpus.source[i].get("id", i)) for i in numbers],
                    lambda place, corpus=corpus, numbers=numbers: without_answer(
                        corpus.document(numbers[place])
                    ),
                )
                for corpus, numbers in (
                    (self.queries, [self._query_indices[place] for place in places]),
                    (self.support, self._support_indices),
                )
            )
            found = self._similar.features(
                model, queries, support, pixels=self._shown, tokenizer=self._tokenizer
            )
            if cache is not None and distributed.is_first():
                write_features(cache, found[0], found[1], about)
        rows = {place: row for row, place in enumerate(places)}
        self._features = _PreparedFeatures(weakref.ref(model), rows, found[0], found[1])

    @property
    def _reasons(self) -> bool:
        """True if answers begin with reasoning."""
        return getattr(self._cfg.corpus.to_document, "reasoning", None) is not None

    def _check_rationales(self, shots: int, place: int) -> None:
        if self._cfg.exemplars_of is not None:
            return
        for i in self._exemplar_places(shots, place):
            record = self.support.source[self._support_indices[i]]
            if not record.get("rationale", "").strip():
                raise ValueError(
                    f"{self._cfg.name}: exemplar {record.get('id', i)!r} of task "
                    f"{self.key(place)!r} has no `rationale` to show as reasoning; ask without "
                    "exemplars (--shots=0), or a benchmark that has rationales, such as scienceqa"
                )

    @functools.cached_property
    def _query_indices(self) -> Sequence[int]:
        return self._indices(self.queries)

    @functools.cached_property
    def _support_indices(self) -> Sequence[int]:
        return self._indices(self.support)

    def _indices(self, corpus: Corpus) -> Sequence[int]:
        """Returns the indices of the records of a split that belong to the benchmark."""
        cfg = self._cfg
        if cfg.records is None:
            return range(len(corpus))
        indices = cfg.records(corpus)
        if beyond := [i for i in indices if not 0 <= i < len(corpus)]:
            raise ValueError(
                f"{cfg.name}: records={cfg.records.__name__} returned {beyond[0]}, expected "
                f"indices of the {len(corpus)} records"
            )
        return indices

    def _check_records(self) -> None:
        """Raises errors at construction that would otherwise appear only after training."""
        cfg = self._cfg
        if not self._query_indices:
            raise ValueError(f"{cfg.name}: corpus {cfg.corpus.name!r} has no test record to ask")
        exemplar_indices(
            len(self._support_indices),
            max((*cfg.shots, *cfg.blank_shots), default=0),
            seed=cfg.seed,
            benchmark=cfg.name,
            query=0,
            exclude=0 if cfg.exemplar_split == "test" else None,
        )

    def _check_similar(self) -> None:
        cfg = self._cfg
        if cfg.exemplars_of is not None:
            raise ValueError(f"{cfg.name}: {self.describe_exemplars()}; leave exemplars=None")
        compares_pictures = cfg.exemplars.features_file is None and not cfg.exemplars.text_weight
        if compares_pictures and not cfg.shows_images:
            raise ValueError(
                f"{cfg.name}: exemplars are chosen by similar pictures, but the benchmark shows "
                "none; set exemplars.text_weight=1 or a features_file, or exemplars=None"
            )

    def _exemplars(self, shots: int, place: int) -> list[Document]:
        """Returns the solved tasks before the query at a place, in order."""
        if self._cfg.exemplars_of is not None:
            return self._cfg.exemplars_of(self.queries, self._query_indices[place], shots)
        drawn = self._exemplar_places(shots, place)
        return [self.support.document(self._support_indices[i]) for i in drawn]

    def _exemplar_places(self, shots: int, place: int) -> list[int]:
        """Returns the indices of the support records before the query at a place, in order."""
        cfg = self._cfg
        exclude = place if cfg.exemplar_split == "test" else None
        if self._similar is not None and shots:
            if self._features is None:
                raise ValueError(
                    f"{cfg.name}: exemplars are chosen by features of the model; call "
                    "prepare(model, shots) first"
                )
            _, rows, queries, support = self._features
            return self._similar.choose(queries, support, rows[place], shots, exclude)
        return exemplar_indices(
            len(self._support_indices),
            shots,
            seed=cfg.seed,
            benchmark=cfg.name,
            query=self._query_indices[place],
            exclude=exclude,
        )

    def _shown(self, image: Image) -> np.ndarray | None:
        try:
            return self._pixels(image)
        except BadImage:
            return None
