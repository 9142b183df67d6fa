"""Evaluators, which compute metrics and samples of a model: tasks, asking, scoring, reports."""
