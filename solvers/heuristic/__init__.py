"""Solvers that find good permutations and prove nothing."""
