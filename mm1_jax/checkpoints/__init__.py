"""Parameters and states on disk: saved, checked, restored, and taken from other runs."""
