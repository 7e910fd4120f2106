"""The files in which serving engines take a placement, written and read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from moe_search.checks import require_choice
from moe_search.problems.placement import Cluster, Experts, Placement

Format = Literal["vllm", "sglang", "tensorrt-llm", "ascend"]
FORMATS = get_args(Format)


def write_placement(
    path: str | Path,
    placement: Placement,
    cluster: Cluster,
    format: Format,  # noqa: A002 - it is the word of the command line
    layers: Sequence[int] | None = None,
) -> None:
    """Write a placement as a serving engine takes it.

    Parameters
    ----------
    path : path
        The file.
    placement : Placement
        What is written.
    cluster : Cluster
        Its devices.
    format : {"vllm", "sglang", "tensorrt-llm", "ascend"}
        ``vllm``: the three tensors of EPLB and vLLM's load balancer, as arrays of an .npz. ``sglang``: the JSON of
        ``--init-expert-location``. ``tensorrt-llm``: the YAML of ``load_balancer``. ``ascend``: the expert map of
        vllm-ascend, a JSON.
    layers : sequence of int, optional
        The numbers of the layers in the model, whose first layers often have no experts; by default 0, 1, 2 and so on.

    Raises
    ------
    ValueError
        If devices differ in slots, which no format can say but that of Ascend, or `layers` are not as many.
    """
    require_choice("format", format, FORMATS)
    experts = placement.physical_to_logical
    numbers = list(range(len(experts))) if layers is None else [int(each) for each in layers]
    if len(numbers) != len(experts):
        raise ValueError(f"layers must hold a number for each of {len(experts)} layers, got {len(numbers)}")
    slots = np.diff(cluster.first_slots)
    if format != "ascend" and slots.min() < slots.max():
        raise ValueError(
            f"devices must have equally many slots in the format {format}, got {slots.min()}-{slots.max()}"
        )
    if format == "vllm":
        with Path(path).open("wb") as file:
            np.savez_compressed(
                file,
                physical_to_logical=experts,
                logical_to_physical=placement.logical_to_physical,
                replica_count=placement.replica_count,
            )
        return
    if format == "sglang":
        text = json.dumps({"physical_to_logical_map": experts.tolist()})
    elif format == "tensorrt-llm":
        lines = [f"num_slots: {experts.shape[1]}", "initial_global_assignments:"]
        lines += [f"  {number}: {row}" for number, row in zip(numbers, experts.tolist(), strict=True)]
        # The placement stays as it is while the engine runs.
        text = "\n".join([*lines, "layer_updates_per_iter: 0"])
    else:
        text = json.dumps(_ascend(experts, numbers, cluster))
    Path(path).write_text(text + "\n", encoding="utf-8")


def _ascend(experts: Experts, numbers: list[int], cluster: Cluster) -> dict[str, Any]:
    layer_list = []
    for number, row in zip(numbers, experts, strict=True):
        of_devices = np.split(row, cluster.first_slots[1:-1])
        devices = [{"device_id": g, "device_expert": each.tolist()} for g, each in enumerate(of_devices)]
        layer_list.append({"layer_id": number, "device_count": cluster.num_devices, "device_list": devices})
    return {"moe_layer_count": len(experts), "layer_list": layer_list}


def read_placement(path: str | Path) -> Experts:
    """Return the expert in every slot, shape (layers, slots), of a file of one of the engines.

    Parameters
    ----------
    path : path
        What `write_placement` writes, told apart by its suffix and content: .npz, .json, .yaml or .yml.

    Raises
    ------
    ValueError
        If the file holds no placement.
    ImportError
        If it is YAML and PyYAML is not installed.
    """
    source = Path(path)
    suffix = source.suffix.lower()
    if suffix == ".npz":
        with np.load(source, allow_pickle=False) as arrays:
            if "physical_to_logical" not in arrays:
                raise ValueError(f"{source} must hold the array physical_to_logical, got {sorted(arrays)}")
            return _as_map(source, arrays["physical_to_logical"])
    if suffix not in (".json", ".yaml", ".yml"):
        raise ValueError(f"a placement must end in .npz, .json, .yaml or .yml, got {source}")
    text = source.read_text(encoding="utf-8")
    try:
        data = json.loads(text) if suffix == ".json" else _yaml(text)
        if "physical_to_logical_map" in data:
            return _as_map(source, data["physical_to_logical_map"])
        if "layer_list" in data:
            layers = sorted(data["layer_list"], key=lambda layer: layer["layer_id"])
            ordered = [sorted(layer["device_list"], key=lambda device: device["device_id"]) for layer in layers]
            rows = [[e for device in devices for e in device["device_expert"]] for devices in ordered]
            return _as_map(source, rows)
        assignments = data["initial_global_assignments"]
        return _as_map(source, [assignments[number] for number in sorted(assignments, key=int)])
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{source} must hold a placement of SGLang, TensorRT-LLM or Ascend: {error!r}") from error


def _as_map(source: Path, rows: Any) -> Experts:
    lengths = {len(row) for row in rows}
    if len(lengths) != 1:
        raise ValueError(f"{source} must have equally many slots in all layers, got {sorted(lengths)}")
    experts = np.array(rows)
    if experts.dtype.kind not in "iu":
        raise ValueError(f"{source} must hold the numbers of experts, got {experts.dtype}")
    return experts.astype(np.int64)


def _yaml(text: str) -> Any:
    try:
        import yaml
    except ImportError:
        raise ImportError("to read YAML needs PyYAML: pip install pyyaml") from None
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise TypeError(str(error)) from error
