"""Adapters of a run's model to the interfaces of evaluation harnesses, one file per harness."""
