import platform
import sys

import moe_search as ms
from moe_search import installation


def test_a_report_of_a_bug_names_system_packages_threads_and_cache(capsys, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setattr("numba.config.CACHE_DIR", "/somewhere")
    ms.show_versions()
    rows = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert rows["python"] == f"{platform.python_version()}, {sys.executable}"
    assert rows["kernels"] == "kept in /somewhere/moe_search"
    assert "OMP_NUM_THREADS=3" in rows["threads"]
    assert {"moe-search", "numpy", "numba", "scipy", "ortools", "torch", "cuda", "processor", "platform"} <= set(rows)


def test_extras_are_named_where_they_are_installed(monkeypatch):
    installed = {"numpy": "2.0", "pandas": "3.0"}

    def version(name):
        if name not in installed:
            raise installation.metadata.PackageNotFoundError(name)
        return installed[name]

    needed = ["numpy>=2.0", "scipy>=1.13", 'pandas>=2.2; extra == "bench"', 'dask[distributed]>=2; extra == "cluster"']
    monkeypatch.setattr(installation.metadata, "requires", lambda name: needed)
    monkeypatch.setattr(installation.metadata, "version", version)
    found = installation.package_versions()
    assert found == {"moe-search": "not installed", "numpy": "2.0", "scipy": "not installed", "pandas": "3.0"}
