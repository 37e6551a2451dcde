"""Work on networks of the size that they have in use, against references in one process."""
