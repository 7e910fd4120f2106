"""The alternation of training and search: candidate map, verification, record."""
