"""Calibration: statistics of every site over the calibration data, in bounded memory."""
