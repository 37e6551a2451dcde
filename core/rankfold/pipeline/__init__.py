"""The stages of a call: session, calibration, allocation, replacement, refit."""
