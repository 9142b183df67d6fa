"""How a step is spread over devices: meshes, axis rules, shardings, what is kept or recomputed."""
