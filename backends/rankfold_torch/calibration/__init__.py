"""Moments of inputs and gradients, losses and their sums."""
