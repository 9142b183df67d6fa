"""Logs of a run: metrics, progress, summaries, reports, profiles."""
