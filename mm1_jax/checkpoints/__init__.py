"""Checkpoints: saving, verifying and restoring states, and initial weights from other runs."""
