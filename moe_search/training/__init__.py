"""The alternation of training and search: lowering, verification, permutation search."""
