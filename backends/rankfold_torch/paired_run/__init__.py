"""The original and the compressed model, run in lock step."""
