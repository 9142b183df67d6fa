"""One file for each benchmark: its records, its prompts, when an answer is right, its metrics."""
