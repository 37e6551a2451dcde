"""Who else uses a layer or its weight, from source text and from a traced run."""
