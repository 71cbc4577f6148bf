"""Prediction, mean IoU and pictures."""
