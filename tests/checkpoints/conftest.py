"""Fixtures of the smallest trainer."""

from bigram_trainer import _make_batch, make_trainer

__all__ = ["_make_batch", "make_trainer"]
