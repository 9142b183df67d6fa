"""Text to token ids and back, with the special tokens of documents."""
