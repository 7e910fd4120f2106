"""The files of serving engines: what is written is what they read."""

import json
import re
import sys

import numpy as np
import pytest

import moe_search as ms
from moe_search.serving import read_loads, read_placement, write_placement

CLUSTER = ms.Cluster(2, 3)
PROBLEM = ms.ExpertPlacement([[8, 6, 1, 2], [1, 2, 3, 4]], CLUSTER)
ROWS = [[0, 1, 2, 0, 1, 3], [3, 2, 1, 3, 2, 0]]
PLACEMENT = PROBLEM.check_solution(ROWS)


@pytest.mark.parametrize(
    ("form", "name"),
    [("vllm", "map.npz"), ("sglang", "map.json"), ("tensorrt-llm", "map.yaml"), ("ascend", "map.json")],
)
def test_what_is_written_is_read_back(form, name, tmp_path):
    if form == "tensorrt-llm":
        pytest.importorskip("yaml")
    write_placement(tmp_path / name, PLACEMENT, CLUSTER, form, layers=[2, 4])
    assert read_placement(tmp_path / name, layers=[2, 4]).tolist() == ROWS
    # Of the engines that count all layers of a model, SGLang wants a line for each of them.
    between = [[0, 1, 2, 3, 0, 1]]
    rows = [*between * 2, ROWS[0], *between, ROWS[1]] if form == "sglang" else ROWS
    assert read_placement(tmp_path / name).tolist() == rows
    if form in ("sglang", "tensorrt-llm"):
        with pytest.raises(ValueError, match=r"must hold layer 5 of the model, got layers [02] \.\. 4"):
            read_placement(tmp_path / name, layers=[4, 5])


def test_the_files_are_those_of_the_engines(tmp_path):
    path = tmp_path / "map.json"
    write_placement(path, PLACEMENT, CLUSTER, "sglang")
    assert json.loads(path.read_text()) == {"physical_to_logical_map": ROWS}
    yaml = tmp_path / "map.yaml"
    write_placement(yaml, PLACEMENT, CLUSTER, "tensorrt-llm", layers=[3, 4])
    assert yaml.read_text() == (
        "num_slots: 6\n"
        "initial_global_assignments:\n"
        "  3: [0, 1, 2, 0, 1, 3]\n"
        "  4: [3, 2, 1, 3, 2, 0]\n"
        "layer_updates_per_iter: 0\n"
    )
    # It counts the layers with experts alone.
    write_placement(path, PLACEMENT, CLUSTER, "ascend", layers=[3, 4])
    written = json.loads(path.read_text())
    assert written["moe_layer_count"] == 2
    assert written["layer_list"][1] == {
        "layer_id": 1,
        "device_count": 2,
        "device_list": [
            {"device_id": 0, "device_expert": [3, 2, 1]},
            {"device_id": 1, "device_expert": [3, 2, 0]},
        ],
    }
    write_placement(tmp_path / "map.npz", PLACEMENT, CLUSTER, "vllm")
    with np.load(tmp_path / "map.npz") as arrays:
        assert arrays["replica_count"].tolist() == PLACEMENT.replica_count.tolist()


def test_what_a_format_cannot_say_is_refused(tmp_path):
    uneven = ms.Cluster(2, (4, 2))
    placement = ms.ExpertPlacement(PROBLEM.load, uneven).check_solution([[0, 1, 2, 3, 0, 1], [0, 1, 2, 3, 0, 1]])
    with pytest.raises(ValueError, match="devices must have equally many slots in the format sglang, got 2-4"):
        write_placement(tmp_path / "map.json", placement, uneven, "sglang")
    write_placement(tmp_path / "map.json", placement, uneven, "ascend")
    assert read_placement(tmp_path / "map.json").tolist()[0] == [0, 1, 2, 3, 0, 1]
    with pytest.raises(ValueError, match="layers must hold a number for each of 2 layers, got 1"):
        write_placement(tmp_path / "map.json", PLACEMENT, CLUSTER, "sglang", layers=[1])
    with pytest.raises(ValueError, match=r"layers must hold no number twice, got \[1, 1\]"):
        write_placement(tmp_path / "map.json", PLACEMENT, CLUSTER, "sglang", layers=[1, 1])
    with pytest.raises(ValueError, match="layers must be an integer >= 0, got -1"):
        write_placement(tmp_path / "map.json", PLACEMENT, CLUSTER, "sglang", layers=[-1, 0])
    with pytest.raises(ValueError, match="cluster must have the 6 slots of the placement, got 4"):
        write_placement(tmp_path / "map.json", PLACEMENT, ms.Cluster(2, 2), "sglang")
    with pytest.raises(ValueError, match="format must be one of vllm, sglang, tensorrt-llm, ascend, got 'eplb'"):
        write_placement(tmp_path / "map.json", PLACEMENT, CLUSTER, "eplb")
    with pytest.raises(
        ValueError, match=r"path must end in \.yaml or \.yml for the format tensorrt-llm, got .*map\.json"
    ):
        write_placement(tmp_path / "map.json", PLACEMENT, CLUSTER, "tensorrt-llm")


def test_a_map_of_other_devices_is_told_where_the_file_names_them(tmp_path):
    write_placement(tmp_path / "map.json", PLACEMENT, CLUSTER, "ascend")
    assert read_placement(tmp_path / "map.json", cluster=CLUSTER).shape == (2, 6)
    with pytest.raises(ValueError, match=r"must be of 3 devices of 2 slots, got 2 devices of 3 slots"):
        read_placement(tmp_path / "map.json", cluster=ms.Cluster(3, 2))
    with pytest.raises(ValueError, match=r"must be of 2 devices of 4, 2 slots, got 2 devices of 3 slots"):
        read_placement(tmp_path / "map.json", cluster=ms.Cluster(2, (4, 2)))


def test_a_file_that_is_no_text_is_named(tmp_path):
    for name in ("a.csv", "a.json", "a.yaml"):
        if name.endswith(".yaml"):
            pytest.importorskip("yaml")
        (tmp_path / name).write_bytes(bytes(range(256)))
        with pytest.raises(ValueError, match=rf"{name} must "):
            (read_placement if name == "a.yaml" else read_loads)(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", "", "a placement must end in .npz, .json, .yaml or .yml"),
        ("a.npz", "text", "must be a file of numpy with numbers, and is none"),
        ("a.json", "{", "must be JSON"),
        ("a.json", '{"layers": 3}', "must hold a placement of SGLang"),
        ("a.json", "[1, 2]", "must hold a placement of SGLang"),
        ("a.json", '{"layer_list": 3}', "must hold a placement of SGLang"),
        ("a.json", '{"initial_global_assignments": [1, 2]}', "must hold a placement of SGLang"),
        ("a.json", '{"physical_to_logical_map": [[0, 1], 3]}', "must hold a list of experts for every layer"),
        ("a.json", '{"physical_to_logical_map": [[0, [1]], [0, 1]]}', "a.json must hold a list of experts for every"),
        ("a.json", '{"physical_to_logical_map": [[0, 1], [0]]}', r"equally many slots in all layers, got \[1, 2\]"),
        ("a.json", '{"physical_to_logical_map": []}', r"equally many slots in all layers, got \[\]"),
        ("a.json", '{"physical_to_logical_map": [[0.5, 1]]}', "must hold the numbers of experts, got float64"),
        ("a.yaml", "num_slots: [", "must be YAML"),
        ("a.yaml", "[" * 5000, "must be YAML"),
        ("a.yaml", "", "must hold a placement of SGLang"),
    ],
)
def test_files_without_a_placement_are_told(name, text, message, tmp_path):
    if name.endswith(".yaml"):
        pytest.importorskip("yaml")
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        read_placement(tmp_path / name)


def test_without_yaml_its_command_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "yaml", None)
    (tmp_path / "a.yaml").write_text("num_slots: 3")
    with pytest.raises(ImportError, match=re.escape("pip install 'moe-search[serving]'")):
        read_placement(tmp_path / "a.yaml")


def test_loads_are_read_from_files_of_numpy_lists_and_lines(tmp_path):
    loads = [[8.0, 6.0, 1.0, 2.0], [1.0, 2.0, 3.0, 4.5]]
    np.savez(tmp_path / "named.npz", load=loads, other=[1])
    np.savez(tmp_path / "only.npz", counts=loads)
    np.save(tmp_path / "a.npy", loads)
    (tmp_path / "a.json").write_text(json.dumps(loads))
    (tmp_path / "a.csv").write_text("8,6,1,2\n\n1, 2, 3, 4.5\n")
    for name in ("named.npz", "only.npz", "a.npy", "a.json", "a.csv"):
        assert read_loads(tmp_path / name).tolist() == loads


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "a,b\n1,2", "must hold lines of equally many numbers with commas between"),
        ("a.csv", "1,2\n3", "must hold lines of equally many numbers with commas between"),
        ("a.json", "[[1, 2], [3]]", "must hold numbers in lists of equal lengths"),
        ("a.json", f"[1{400 * '0'}]", "must hold numbers in lists of equal lengths"),
        ("a.json", "{}", "must hold numbers in lists of equal lengths"),
        ("a.npz", "text", "must be a file of numpy with numbers, and is none"),
        ("a.txt", "1", "loads must end in .npz, .npy, .json or .csv"),
    ],
)
def test_files_without_loads_are_told(name, text, message, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        read_loads(tmp_path / name)


def test_an_array_is_found_by_its_name_or_alone(tmp_path):
    np.savez(tmp_path / "two.npz", a=[1.0], b=[2.0])
    with pytest.raises(ValueError, match="must hold an array load, got a, b"):
        read_loads(tmp_path / "two.npz")
    np.savez(tmp_path / "none.npz")
    with pytest.raises(ValueError, match="must hold an array load, got none"):
        read_loads(tmp_path / "none.npz")
    np.savez(tmp_path / "loads.npz", load=[[1, 2]])
    with pytest.raises(ValueError, match="must hold an array physical_to_logical, got load"):
        read_placement(tmp_path / "loads.npz")
