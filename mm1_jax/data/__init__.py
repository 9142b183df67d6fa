"""The data side: records to batches. NumPy and grain only; no jax, no model code."""
