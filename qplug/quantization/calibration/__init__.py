"""Calibration: statistics of every site, collected over the calibration data in bounded memory."""
