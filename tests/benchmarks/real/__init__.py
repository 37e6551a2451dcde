"""Compression of networks that were trained for real tasks, against other methods at equal cost."""
