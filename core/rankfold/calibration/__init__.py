"""What calibration data is reduced to, and the norm that it defines on weights."""
