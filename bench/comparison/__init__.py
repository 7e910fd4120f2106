"""Comparing solvers by benchopt: data sets, runs, statistics and their report."""
