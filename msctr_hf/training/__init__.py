"""Training: settings, setup, loop, checkpoints, resuming, logs."""
