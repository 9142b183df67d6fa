"""Fixtures of the smallest trainer."""

from bigram_trainer import _make_batch, batch, fakes, make_trainer, run, unstopped

__all__ = ["_make_batch", "batch", "fakes", "make_trainer", "run", "unstopped"]
