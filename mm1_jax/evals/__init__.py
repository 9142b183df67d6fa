"""What a model can do: evaluators that turn it into numbers and samples."""
