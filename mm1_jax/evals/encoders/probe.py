"""Base class of probes: classifiers fitted to frozen features of a training split."""

import numpy as np

from mm1_jax.config import config_class
from mm1_jax.evals.encoders.encoder_evaluator import EncoderEvaluator, classification_names
from mm1_jax.evals.encoders.pictures import PictureSource
from mm1_jax.field_types import Share


class Probe(EncoderEvaluator):
    """Fits a classifier to the training split of a data set, and scores it on the test split."""

    @config_class
    class Config(EncoderEvaluator.Config):
        # Fraction of the training pictures on which the strength of the fit is chosen.
        validation: Share = 0.1

    def _read(self, source: PictureSource) -> None:
        self._train = self._labeled(source, "train")
        self._test = self._labeled(source, "test")

    def fingerprint(self) -> str:
        return f"train: {self._train.fingerprint()} test: {self._test.fingerprint()}"

    def metric_names(self) -> list[str]:
        names = classification_names(len(self._test.class_names))
        return [f"{self.config.name}/0/{name}" for name in names]

    def _parts(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Splits the indices of `number` training pictures into those to fit and those to choose.

        Raises:
            ValueError: One of the two parts is empty.
        """
        cfg = self.config
        order = np.random.default_rng(cfg.seed).permutation(number)
        chosen = round(cfg.validation * number)
        if not 0 < chosen < number:
            raise ValueError(
                f"evals: {cfg.name}: validation={cfg.validation} of {number} training pictures is "
                f"{chosen}; expected at least one, and not all"
            )
        return np.sort(order[chosen:]), np.sort(order[:chosen])
