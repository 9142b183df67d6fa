"""Studies: each module has `study()`, the design, and `named_configs()`, its configs if any."""
