"""The packages of moe_search whose names are public."""

PACKAGES = {
    "analysis",
    "gates",
    "huggingface",
    "integrations",
    "layers",
    "plotting",
    "problems",
    "serving",
    "solvers",
    "training",
}
