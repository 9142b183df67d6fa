"""Training: loss, optimizer, state, step, loop, logs and report."""
