"""Evaluators, which turn a model into numbers and samples: tasks, asking, scoring, reports."""
