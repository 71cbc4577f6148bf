"""Prediction, mean IoU and images."""
