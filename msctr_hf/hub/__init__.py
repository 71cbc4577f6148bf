"""Model cards, pushes to the Hub, exports to other runtimes, and conversion of released checkpoints."""
