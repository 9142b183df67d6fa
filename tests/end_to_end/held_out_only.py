"""Experiments without evaluations that decode, because these take longer than a few steps."""

import functools

from experiments import pretrain


def _held_out_only(make):
    @functools.wraps(make)
    def experiment():
        cfg = make()
        cfg.evals = {"held_out_loss": cfg.evals["held_out_loss"]}
        return cfg

    return experiment


def named_configs():
    makers = (pretrain.mm1_tiny, pretrain.mm1_tiny_moe)
    return {make.__name__: _held_out_only(make) for make in makers}
