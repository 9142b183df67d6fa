"""Files of predictions, in the layouts of the benchmarks -> scores; a family a file."""
