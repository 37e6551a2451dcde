"""Reduction of calibration data to moments, and the norm that these define on weights."""
