"""Adapters for evaluation harnesses: a run's model under the interface of each, a file each."""
