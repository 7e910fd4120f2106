"""From a model, a batch and a loss to a search problem."""
