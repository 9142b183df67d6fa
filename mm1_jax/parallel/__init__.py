"""Parallelism of a training step: meshes, axis rules, shardings, rematerialization."""
