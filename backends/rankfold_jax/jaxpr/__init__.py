"""Dataflow through jaxprs: which parameter meets which value."""
