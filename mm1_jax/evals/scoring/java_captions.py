"""METEOR and SPICE of captions, run as Java programs: the extra `caption-metrics`."""

import importlib
import shutil
from collections.abc import Sequence

from mm1_jax.evals.scoring.captions import tokenized_items
from mm1_jax.evals.scoring.items import Item
from mm1_jax.evals.scoring.ptb_tokenizer import tokenize

# Metric -> module and class.
JAVA_METRICS = {
    "METEOR": ("pycocoevalcap.meteor.meteor", "Meteor"),
    "SPICE": ("pycocoevalcap.spice.spice", "Spice"),
}


def _utf8_tokens(texts: Sequence[str]) -> list[list[str]]:
    return tokenize([text.encode("utf-8", "replace").decode() for text in texts])


def java_caption_score(name: str, items: Sequence[Item]) -> float:
    """Computes a metric of `JAVA_METRICS` over all images, on PTB tokens.

    SPICE downloads its parser, 1.2 GB with models, at its first use.

    Raises:
        ValueError: pycocoevalcap or Java is missing; the message says how to install it.
    """
    module, class_name = JAVA_METRICS[name]
    try:
        scorer = getattr(importlib.import_module(module), class_name)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{name} needs the package pycocoevalcap ({error}): pip install "
            "'mm1_jax[caption-metrics]'; CIDEr, BLEU and ROUGE-L need neither it nor Java"
        ) from error
    if shutil.which("java") is None:
        raise ValueError(
            f"{name} is a Java program, but there is no `java` on the PATH; install a Java runtime"
        )
    # The programs read UTF-8, which cannot encode an unpaired surrogate.
    candidates, sets = tokenized_items(items, _utf8_tokens)
    keys = range(len(candidates))
    score, _ = scorer().compute_score(
        {key: [" ".join(caption) for caption in sets[key]] for key in keys},
        {key: [" ".join(candidates[key])] for key in keys},
    )
    return float(score)
