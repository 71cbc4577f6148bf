"""Experiments whose arms, seeds and end point a file fixes before the first run, and the verdict on them."""
