"""What is done to each layer of a model, as data, as JSON and as a table."""
