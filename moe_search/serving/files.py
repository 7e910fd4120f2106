"""The files in which serving engines take a placement, written and read, and those of loads."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from moe_search.checks import require_choice, require_integer
from moe_search.problems.placement import Cluster, Experts, Placement

Format = Literal["vllm", "sglang", "tensorrt-llm", "ascend"]
FORMATS = get_args(Format)
SUFFIXES = {"vllm": (".npz",), "sglang": (".json",), "tensorrt-llm": (".yaml", ".yml"), "ascend": (".json",)}


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
        The file, which ends in .npz for vLLM, in .yaml for TensorRT-LLM and in .json for the others.
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
        SGLang counts all layers of a model and so does TensorRT-LLM, the other two those with experts only. For
        SGLang the layers left out are written with their experts in order.

    Raises
    ------
    ValueError
        If devices differ in slots, which no format can say but that of Ascend, or are not those of the placement, or
        `layers` are no numbers of as many layers, or the path ends otherwise.

    Examples
    --------
    >>> import pathlib
    >>> import moe_search as ms
    >>> cluster = ms.Cluster(num_devices=2, slots_per_device=2)
    >>> placement = ms.ExpertPlacement([8, 6, 1, 2], cluster).check_solution([0, 2, 1, 3])
    >>> ms.serving.write_placement("map.json", placement, cluster, "sglang", layers=[1])
    >>> print(pathlib.Path("map.json").read_text().strip())
    {"physical_to_logical_map": [[0, 1, 2, 3], [0, 2, 1, 3]]}
    """
    require_choice("format", format, FORMATS)
    check_suffix(path, format, "path")
    experts = placement.physical_to_logical
    numbers = list(range(len(experts))) if layers is None else [require_integer("layers", each, 0) for each in layers]
    if len(numbers) != len(experts):
        raise ValueError(f"layers must hold a number for each of {len(experts)} layers, got {len(numbers)}")
    if len(set(numbers)) != len(numbers):
        raise ValueError(f"layers must hold no number twice, got {numbers}")
    if cluster.num_slots != experts.shape[1]:
        raise ValueError(f"cluster must have the {experts.shape[1]} slots of the placement, got {cluster.num_slots}")
    slots = cluster.slots
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
        rows = np.tile(np.arange(experts.shape[1]) % placement.replica_count.shape[1], (max(numbers) + 1, 1))
        rows[numbers] = experts
        text = json.dumps({"physical_to_logical_map": rows.tolist()})
    elif format == "tensorrt-llm":
        lines = [f"num_slots: {experts.shape[1]}", "initial_global_assignments:"]
        lines += [f"  {number}: {row}" for number, row in zip(numbers, experts.tolist(), strict=True)]
        # The placement stays as it is while the engine runs.
        text = "\n".join([*lines, "layer_updates_per_iter: 0"])
    else:
        text = json.dumps(_ascend(experts, cluster))
    Path(path).write_text(text + "\n", encoding="utf-8")


def check_suffix(path: str | Path, format: Format, name: str) -> None:  # noqa: A002
    """Raise ValueError unless a path ends as the files of a format do, by which they are read."""
    if Path(path).suffix.lower() not in SUFFIXES[format]:
        raise ValueError(f"{name} must end in {' or '.join(SUFFIXES[format])} for the format {format}, got {path}")


def _ascend(experts: Experts, cluster: Cluster) -> dict[str, Any]:
    layer_list = []
    for number, row in enumerate(experts):
        of_devices = np.split(row, cluster.first_slots[1:-1])
        devices = [{"device_id": g, "device_expert": each.tolist()} for g, each in enumerate(of_devices)]
        layer_list.append({"layer_id": number, "device_count": cluster.num_devices, "device_list": devices})
    return {"moe_layer_count": len(experts), "layer_list": layer_list}


def read_placement(path: str | Path, layers: Sequence[int] | None = None, cluster: Cluster | None = None) -> Experts:
    """Return the expert in every slot, shape (layers, slots), of a file of one of the engines.

    Parameters
    ----------
    path : path
        What `write_placement` writes, told apart by its suffix and content: .npz, .json, .yaml or .yml.
    layers : sequence of int, optional
        The numbers in the model of the layers to return, where the engine counts all layers of a model; by default
        all in the file.
    cluster : Cluster, optional
        The devices that it must be of; only the format of Ascend says how many slots each has.

    Raises
    ------
    ValueError
        If the file holds no placement, or not that of a layer, or one of other devices.
    ImportError
        If it is YAML and PyYAML is not installed.

    Examples
    --------
    >>> import pathlib
    >>> import moe_search as ms
    >>> _ = pathlib.Path("map.json").write_text('{"physical_to_logical_map": [[0, 1, 2, 3], [0, 2, 1, 3]]}')
    >>> ms.serving.read_placement("map.json", layers=[1]).tolist()
    [[0, 2, 1, 3]]
    """
    source = Path(path)
    suffix = source.suffix.lower()
    if suffix == ".npz":
        return _as_map(source, _array(source, "physical_to_logical"))
    if suffix not in (".json", ".yaml", ".yml"):
        raise ValueError(f"a placement must end in .npz, .json, .yaml or .yml, got {source}")
    data = _json(source) if suffix == ".json" else _yaml(source)
    experts: list[list[int]] | None = None
    of_others: set[tuple[int, ...]] = set()
    rows: dict[int, Any] = {}
    try:
        if "layer_list" in data:
            # vllm-ascend goes by the order, too.
            of_layers = [[device["device_expert"] for device in layer["device_list"]] for layer in data["layer_list"]]
            experts = [[expert for held in of_devices for expert in held] for of_devices in of_layers]
            of_others = {tuple(map(len, of_devices)) for of_devices in of_layers}
        elif "physical_to_logical_map" in data:
            rows = dict(enumerate(data["physical_to_logical_map"]))
        else:
            rows = {int(number): row for number, row in data["initial_global_assignments"].items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{source} must hold a placement of SGLang, TensorRT-LLM or vllm-ascend") from error
    if experts is not None:
        if cluster is not None and of_others and of_others != {tuple(cluster.slots.tolist())}:
            there = "; ".join(sorted(_in_words(each) for each in of_others))
            raise ValueError(f"{source} must be of {_in_words(tuple(cluster.slots.tolist()))}, got {there}")
        return _as_map(source, experts)
    numbers = sorted(rows) if layers is None else [int(each) for each in layers]
    missing = [number for number in numbers if number not in rows]
    if missing:
        there = f"layers {min(rows)} .. {max(rows)}" if rows else "none"
        raise ValueError(f"{source} must hold layer {missing[0]} of the model, got {there}")
    return _as_map(source, [rows[number] for number in numbers])


def _in_words(slots: tuple[int, ...]) -> str:
    """Return how many devices there are, of how many slots."""
    many = sorted(set(slots))
    return f"{len(slots)} devices of {many[0] if len(many) == 1 else ', '.join(map(str, slots))} slots"


def _as_map(source: Path, rows: Any) -> Experts:
    try:
        lengths = sorted({len(row) for row in rows})
    except TypeError as error:
        raise ValueError(f"{source} must hold a list of experts for every layer") from error
    if len(lengths) != 1:
        raise ValueError(f"{source} must have equally many slots in all layers, got {lengths}")
    try:
        experts = np.array(rows)
    except ValueError as error:
        raise ValueError(f"{source} must hold a list of experts for every layer") from error
    if experts.dtype.kind not in "iu" or experts.ndim != 2:
        raise ValueError(f"{source} must hold the numbers of experts, got {experts.dtype} of shape {experts.shape}")
    return experts.astype(np.int64)


def read_loads(path: str | Path) -> npt.NDArray[Any]:
    """Return the loads of experts in a file.

    Parameters
    ----------
    path : path
        .npz with one array or one that is named ``load``, .npy, .json with lists in lists, or .csv with a line a layer.

    Returns
    -------
    ndarray
        As it is in the file: of shape (experts,), (layers, experts) or (windows, layers, experts) if it is right.

    Raises
    ------
    ValueError
        If the file holds no loads.

    Examples
    --------
    >>> import numpy as np
    >>> import moe_search as ms
    >>> np.savez("loads.npz", load=[[8, 4, 2, 2], [1, 1, 1, 9]])
    >>> ms.serving.read_loads("loads.npz").shape
    (2, 4)
    """
    source = Path(path)
    suffix = source.suffix.lower()
    if suffix in (".npy", ".npz"):
        return _array(source, "load")
    if suffix not in (".json", ".csv"):
        raise ValueError(f"loads must end in .npz, .npy, .json or .csv, got {source}")
    if suffix == ".json":
        lists = _json(source)
        try:
            return np.array(lists, dtype=np.float64)
        except (OverflowError, TypeError, ValueError) as error:
            raise ValueError(f"{source} must hold numbers in lists of equal lengths") from error
    try:
        lines = [line for line in source.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
        return np.array([[float(word) for word in line.split(",")] for line in lines])
    except ValueError as error:
        raise ValueError(f"{source} must hold lines of equally many numbers with commas between") from error


def _array(source: Path, name: str) -> npt.NDArray[Any]:
    """Return the array of a name in a file of numpy, or the only one in it if it is not of a placement."""
    try:
        loaded = np.load(source, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded
        with loaded:
            if name in loaded:
                return loaded[name]
            names = sorted(loaded.files)
            if len(names) == 1 and name == "load":
                return loaded[names[0]]
    except (EOFError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"{source} must be a file of numpy with numbers, and is none") from error
    raise ValueError(f"{source} must hold an array {name}, got {', '.join(names) or 'none'}")


def _json(source: Path) -> Any:
    try:
        return json.loads(source.read_text(encoding="utf-8-sig"))
    except (RecursionError, ValueError) as error:
        raise ValueError(f"{source} must be JSON: {error}") from error


def _yaml(source: Path) -> Any:
    try:
        import yaml
    except ImportError:
        raise ImportError("to read YAML takes pip install 'moe-search[serving]'") from None
    try:
        return yaml.safe_load(source.read_text(encoding="utf-8"))
    except (RecursionError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{source} must be YAML: {error}") from error
