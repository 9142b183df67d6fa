"""Formats that turn the turns of a conversation into a document; one per file."""
