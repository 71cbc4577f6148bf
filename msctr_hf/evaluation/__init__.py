"""Prediction, scores, reports and figures."""
