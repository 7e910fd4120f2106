"""Gates, layers and searches on a device that is not the CPU: equal results, and no step waits that does not search."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HELPERS = Path(__file__).parents[1] / "helpers"


@pytest.mark.skipif(not hasattr(torch._C, "_acc"), reason="needs a torch that takes devices written in Python")
def test_all_runs_as_on_the_cpu_and_waits_for_nothing(tmp_path):
    """All jobs in one process, which the device marks for good; those that fail are told with what went wrong."""
    path = tmp_path / "faults.json"
    folders = os.pathsep.join([str(HELPERS), str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": folders}
    subprocess.run([sys.executable, str(HELPERS / "far_jobs.py"), str(path)], check=True, env=environment)
    faults = json.loads(path.read_text(encoding="utf-8"))
    assert len(faults) > 70
    assert {job: fault for job, fault in faults.items() if fault} == {}
