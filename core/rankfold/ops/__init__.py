"""The four ops that layers are read into, their geometry, their costs and their values."""
