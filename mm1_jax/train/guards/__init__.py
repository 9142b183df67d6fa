"""Guards of a run: stop signals, anomalous steps, hanging hosts, silent data corruption."""
