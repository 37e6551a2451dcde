"""Checkpoints: models that are files, compressed tensor by tensor without their code."""
