"""Layouts of the weights of Flax's layers."""
