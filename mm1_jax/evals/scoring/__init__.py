"""Scoring functions, from answered records to metrics; a family a file. NumPy alone."""
