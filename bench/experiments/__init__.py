"""Experiments: where search pays, with paired seeds and honest statistics."""
