"""Search for other users of a layer or its weight, in source text and in a traced run."""
