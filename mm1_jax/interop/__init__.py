"""Weights in and out: imports of foreign checkpoints, and exports for transformers."""
