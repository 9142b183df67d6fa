"""One file per benchmark: records, prompts, when an answer is right, and metrics."""
