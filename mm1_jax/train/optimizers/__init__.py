"""Optimizers: one file per optimizer, and the parts that they share."""
