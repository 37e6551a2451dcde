"""Rank policies: one a file, each choosing a method and ranks for every layer."""
