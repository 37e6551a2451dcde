"""Linear algebra on NumPy and array-API arrays."""
