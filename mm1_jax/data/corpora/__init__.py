"""Corpora, one file per kind: functions that turn records into documents."""
