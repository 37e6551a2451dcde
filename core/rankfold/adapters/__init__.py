"""The interface between the core and a framework."""
