"""From a batch to a trained model: loss, optimiser, state, step, loop, report."""
