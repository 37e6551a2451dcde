"""Work on networks of the size that people have, against references in the same process."""
