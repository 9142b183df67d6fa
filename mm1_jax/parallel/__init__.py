"""Spreads a step over devices: meshes, axis rules, shardings, what is kept or recomputed."""
