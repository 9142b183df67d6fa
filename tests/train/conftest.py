"""Fixtures of the smallest trainer."""

from bigram_trainer import _make_batch, batch, fakes, make_trainer

__all__ = ["_make_batch", "batch", "fakes", "make_trainer"]
