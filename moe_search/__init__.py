"""moe-search."""
