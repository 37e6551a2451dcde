"""Changes to other people's objects that are always undone, and who refers to an object."""
