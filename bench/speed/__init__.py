"""Speed benchmarks, one a file; ``python -m moe_search.bench.speed`` runs them."""
