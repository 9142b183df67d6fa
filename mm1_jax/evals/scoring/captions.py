"""BLEU, ROUGE-L and CIDEr-D of captions, as the COCO caption evaluation computes them.

Captions are lists of tokens, officially those of `ptb_tokenizer.tokenize`. Where the published code
and the papers differ, this module follows the code, since all published figures come from it. The
code joins tokens with spaces; ROUGE-L then splits at single spaces, but BLEU and CIDEr-D at any
whitespace. For these two, a token with a no-break space such as "22 3/4" is two words, and an empty
token is none.
"""

import collections
import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from jaxtyping import Float

from mm1_jax.evals.scoring.items import Item, Scored, Tally, means, of_group
from mm1_jax.evals.scoring.ptb_tokenizer import tokenize
from mm1_jax.evals.scoring.texts import mean

Tokens = Sequence[str]
Tokenizer = Callable[[Sequence[str]], list[list[str]]]

MAX_ORDER = 4
# Constants by which the official code avoids division by zero.
_TINY, _SMALL = 1e-15, 1e-9
ROUGE_BETA = 1.2
CIDER_SIGMA = 6.0
CIDER_SCALE = 10.0


def whitespace_tokenize(texts: Sequence[str]) -> list[list[str]]:
    """Splits texts at single spaces, keeping case and punctuation, as nlg-eval does.

    Two spaces in a row enclose an empty token, which ROUGE-L counts.
    """
    return [text.strip().split(" ") for text in texts]


def captions(items: Sequence[Item]) -> Scored:
    """CIDEr-D and ROUGE-L of each caption, and CIDEr-D for each `domain` of the records.

    CIDEr-D of a domain and of a bootstrap draw also uses the document frequencies of all
    references.
    """
    columns = caption_columns(*tokenized_items(items))
    domains = [item.record.get("domain", "") for item in items]
    by_domain = {
        f"CIDEr_{domain}": of_group(columns["CIDEr"], domains, domain)
        for domain in sorted({*domains} - {""})
    }
    # A caption is right only to a degree.
    return Scored([None] * len(items), columns | by_domain)


def relative_captions(items: Sequence[Item]) -> Scored:
    """`captions`, and `relative_CIDEr`: CIDEr-D relative to that of references.

    The divisor is the CIDEr-D of the first reference of each item against its other references, so
    that 1 is as good as a reference, and the value can be averaged with accuracies. Each item must
    have at least two references.
    """
    columns = caption_columns(*tokenized_items(items))
    references = [tokenize(item.record["captions"]) for item in items]
    own = cider_d([each[0] for each in references], [each[1:] for each in references])
    columns["reference_CIDEr"] = np.asarray(own, float)

    def combine(tallies: Mapping[str, Tally]) -> dict[str, np.ndarray]:
        found = means(tallies)
        own = found["reference_CIDEr"]
        # A single item has no CIDEr-D, as all of its n-grams are in all references.
        relative = np.divide(found["CIDEr"], own, out=np.zeros_like(own), where=own > 0)
        return found | {"relative_CIDEr": relative}

    return Scored([None] * len(items), columns, combine, quality=columns["CIDEr"])


def caption_scores(items: Sequence[Item], tokenizer: Tokenizer = tokenize) -> dict[str, float]:
    """Computes `Bleu_1` .. `Bleu_4`, `ROUGE_L` and `CIDEr`, named as in the official code."""
    candidates, sets = tokenized_items(items, tokenizer)
    found = {f"Bleu_{i + 1}": float(x) for i, x in enumerate(bleu(candidates, sets))}
    columns = caption_columns(candidates, sets)
    return found | {name: mean(columns[name].tolist()) for name in ("ROUGE_L", "CIDEr")}


def caption_columns(
    candidates: Sequence[Tokens], references: Sequence[Sequence[Tokens]]
) -> dict[str, Float[np.ndarray, "captions"]]:
    """Computes CIDEr-D and ROUGE-L of each caption."""
    return {
        "CIDEr": np.asarray(cider_d(candidates, references), float),
        "ROUGE_L": np.asarray(rouge_l(candidates, references), float),
    }


def tokenized_items(
    items: Sequence[Item], tokenizer: Tokenizer = tokenize
) -> tuple[list[list[str]], list[list[list[str]]]]:
    """Returns the tokens of the caption and of the references of each item.

    Raises:
        ValueError: There are no items, or an item has no references. Skipping it would change the
            scores of all others, as document frequencies are over all references.
    """
    if not items:
        raise ValueError("no captions to score: there must be a prediction for at least one image")
    if lacking := [item.key for item in items if not item.record["captions"]]:
        raise ValueError(
            f"no reference captions for {len(lacking)} of {len(items)} images, the first "
            f"{lacking[0]!r}; give the references of the images that were captioned"
        )
    candidates = tokenizer([item.text for item in items])
    # All texts are tokenized in one call, in order: see `ptb_tokens`.
    flat = iter(tokenizer([text for item in items for text in item.record["captions"]]))
    return candidates, [[next(flat) for _ in item.record["captions"]] for item in items]


def bleu(
    candidates: Sequence[Tokens], references: Sequence[Sequence[Tokens]]
) -> Float[np.ndarray, "order"]:
    """Computes corpus BLEU of the orders 1 to 4 (Papineni et al., 2002).

    The reference length is the closest one; of equally close lengths, the shorter one.
    """
    matched, possible = np.zeros(MAX_ORDER), np.zeros(MAX_ORDER)
    length = reference_length = 0
    for candidate, captions in _pairs(candidates, references):
        length += len(candidate)
        _, closest = min((abs(len(caption) - len(candidate)), len(caption)) for caption in captions)
        reference_length += closest
        most: collections.Counter[tuple[str, ...]] = collections.Counter()
        for caption in captions:
            most |= _ngrams(caption)
        for ngram, count in _ngrams(candidate).items():
            matched[len(ngram) - 1] += min(count, most[ngram])
        possible += np.maximum(0, len(candidate) - np.arange(MAX_ORDER))
    precisions = (matched + _TINY) / (possible + _SMALL)
    scores = np.cumprod(precisions) ** (1 / np.arange(1, MAX_ORDER + 1))
    ratio = (length + _TINY) / (reference_length + _SMALL)
    return scores * math.exp(1 - 1 / ratio) if ratio < 1 else scores


def rouge_l(
    candidates: Sequence[Tokens], references: Sequence[Sequence[Tokens]]
) -> Float[np.ndarray, "captions"]:
    """Computes ROUGE-L of each caption; precision and recall may be of different references."""
    return np.array([_rouge_l(*pair) for pair in zip(candidates, references, strict=True)])


def _rouge_l(candidate: Tokens, captions: Sequence[Tokens]) -> float:
    # The official code splits at spaces, so a caption without tokens has one empty token.
    candidate = candidate or [""]
    common = [
        (_longest_common_subsequence(candidate, caption or [""]), len(caption) or 1)
        for caption in captions
    ]
    precision = max(count / len(candidate) for count, _ in common)
    recall = max(count / length for count, length in common)
    if not precision or not recall:
        return 0.0
    return (1 + ROUGE_BETA**2) * precision * recall / (recall + ROUGE_BETA**2 * precision)


def _longest_common_subsequence(a: Tokens, b: Tokens) -> int:
    """Returns its length; a row of the table is the bits of an integer (Hyyroe, 2004)."""
    places: dict[str, int] = {}
    for i, token in enumerate(a):
        places[token] = places.get(token, 0) | 1 << i
    full = (1 << len(a)) - 1
    row = full
    for token in b:
        matches = row & places.get(token, 0)
        row = (row + matches | row - matches) & full
    return len(a) - row.bit_count()


def cider_d(
    candidates: Sequence[Tokens], references: Sequence[Sequence[Tokens]]
) -> Float[np.ndarray, "captions"]:
    """Computes CIDEr-D of each caption (Vedantam et al., 2015), times 10.

    CIDEr-D is the cosine of TF-IDF vectors of n-grams, with counts clipped to those of the
    reference, times a Gaussian of the difference in length, averaged over orders 1 to 4 and over
    references. As in the official code, the length of a caption is its number of bigrams, and an
    n-gram in no reference is weighted like one in a single image's references.
    """
    pairs = _pairs(candidates, references)
    document_frequency = collections.Counter(
        ngram
        for _, captions in pairs
        for ngram in {ngram for caption in captions for ngram in _ngrams(caption)}
    )
    # Like the document frequencies, the total counts images.
    log_total = math.log(len(pairs))

    def weighted(caption: Tokens) -> tuple[list[dict[tuple[str, ...], float]], list[float]]:
        vectors: list[dict[tuple[str, ...], float]] = [{} for _ in range(MAX_ORDER)]
        for ngram, count in _ngrams(caption).items():
            idf = log_total - math.log(max(1, document_frequency[ngram]))
            vectors[len(ngram) - 1][ngram] = count * idf
        return vectors, [math.sqrt(sum(x * x for x in vector.values())) for vector in vectors]

    def similarity(candidate: Tokens, captions: Sequence[Tokens]) -> float:
        vectors, norms = weighted(candidate)
        total = 0.0
        for caption in captions:
            others, other_norms = weighted(caption)
            delta = max(len(candidate) - 1, 0) - max(len(caption) - 1, 0)
            damping = math.exp(-(delta**2) / (2 * CIDER_SIGMA**2))
            for vector, other, norm, other_norm in zip(
                vectors, others, norms, other_norms, strict=True
            ):
                if norm and other_norm:
                    product = sum(
                        min(x, other[ngram]) * other[ngram]
                        for ngram, x in vector.items()
                        if ngram in other
                    )
                    total += damping * product / (norm * other_norm)
        return CIDER_SCALE * total / (MAX_ORDER * len(captions))

    return np.array([similarity(candidate, captions) for candidate, captions in pairs])


def _pairs(
    candidates: Sequence[Tokens], references: Sequence[Sequence[Tokens]]
) -> list[tuple[list[str], list[list[str]]]]:
    """Returns each candidate with its references, as words for BLEU and CIDEr-D."""
    return [
        (" ".join(candidate).split(), [" ".join(caption).split() for caption in captions])
        for candidate, captions in zip(candidates, references, strict=True)
    ]


def _ngrams(tokens: Tokens) -> collections.Counter[tuple[str, ...]]:
    """Counts each n-gram of 1 to 4 tokens."""

    def all_ngrams() -> Iterable[tuple[str, ...]]:
        for order in range(1, MAX_ORDER + 1):
            yield from zip(*(tokens[i:] for i in range(order)), strict=False)

    return collections.Counter(all_ngrams())
