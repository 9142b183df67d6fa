"""Decoding: greedy search, sampling, beam search, and continuous batching."""
