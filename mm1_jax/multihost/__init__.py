"""Processes of a run: finding them, connecting them, and communication between them."""
