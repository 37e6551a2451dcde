"""Moments of inputs and gradients, gathered while a jaxpr is evaluated."""
