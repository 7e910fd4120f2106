"""The demo: sparse gates trained on real images with and without search, the exact optimum beside the search."""
