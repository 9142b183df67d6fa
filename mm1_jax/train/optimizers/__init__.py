"""Gradient -> update: one file a kind of optimizer, and what they share."""
