"""Evaluators of vision encoders: zero-shot classification, retrieval, and probes of features."""
