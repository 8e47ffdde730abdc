"""One step on the accelerator: devices, runner. Knows models, not requests."""
