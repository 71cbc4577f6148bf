"""Model cards, pushing to the Hub, export to other runtimes, and conversion of released checkpoints."""
