"""A Flax model as a pure function, its inputs, losses and times."""
