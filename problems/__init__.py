"""What is minimized: problem classes over permutations, their kernels, instances and files."""

from moe_search.problems import quadratic_deltas  # noqa: F401  (registers its kernels)
from moe_search.problems.linear import LinearAssignment
from moe_search.problems.load_limited import LoadLimited
from moe_search.problems.mixture import MixtureAssignment
from moe_search.problems.pairwise import PairwiseAssignment
from moe_search.problems.problem import Problem
from moe_search.problems.qaplib import read_qaplib, read_qaplib_solution, write_qaplib, write_qaplib_solution
from moe_search.problems.quadratic import QuadraticAssignment
from moe_search.problems.random_instances import random_linear, random_mixture, random_pairwise, random_quadratic
from moe_search.problems.value_range import value_range

__all__ = [
    "LinearAssignment",
    "LoadLimited",
    "MixtureAssignment",
    "PairwiseAssignment",
    "Problem",
    "QuadraticAssignment",
    "random_linear",
    "random_mixture",
    "random_pairwise",
    "random_quadratic",
    "read_qaplib",
    "read_qaplib_solution",
    "value_range",
    "write_qaplib",
    "write_qaplib_solution",
]
