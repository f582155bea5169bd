"""Calibration, evaluation and training data: where it comes from, and how a run streams it."""
