"""The decision on each layer of a model, as data, as JSON and as a table."""
