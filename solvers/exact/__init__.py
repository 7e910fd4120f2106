"""Solvers that prove optimality if they are given the time."""
