"""How Flax lays out the weights of its layers."""
