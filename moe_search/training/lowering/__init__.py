"""Lowering makes a search problem of a model, batches and a loss."""
