"""The original and the compressed model, evaluated in lock step."""
