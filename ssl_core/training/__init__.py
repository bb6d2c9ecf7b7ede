"""The training loop, its checkpoints and its health gauges."""
