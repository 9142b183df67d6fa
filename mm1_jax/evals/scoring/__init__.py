"""Scoring functions from answered records to metrics, one file per family; NumPy only."""
