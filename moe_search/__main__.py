"""``python -m moe_search`` is the command ``moe-search``.

No module imports this one, which stands above the library and the laboratory.
"""

from moe_search.bench.commands import app

if __name__ == "__main__":
    app()
