"""Guards of a run: stop signals, anomalous steps, silent hosts, devices that compute wrong bits."""
