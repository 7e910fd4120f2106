"""What the library is compared with: textbook twins, scipy's heuristics, the published relaxation."""
