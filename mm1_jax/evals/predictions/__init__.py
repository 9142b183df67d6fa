"""Scoring of prediction files in the layouts of the benchmarks, one file per family."""
