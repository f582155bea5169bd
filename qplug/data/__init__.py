"""Calibration, evaluation and training data: their sources, and streams of prepared batches."""
