"""The files of serving engines: what is written is what they read."""

import json

import numpy as np
import pytest

import moe_search as ms
from moe_search.serving import read_placement, write_placement

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
    write_placement(tmp_path / name, PLACEMENT, CLUSTER, form, layers=[9, 10])
    assert read_placement(tmp_path / name).tolist() == ROWS


def test_the_files_are_those_of_the_engines(tmp_path):
    path = tmp_path / "map.json"
    write_placement(path, PLACEMENT, CLUSTER, "sglang")
    assert json.loads(path.read_text()) == {"physical_to_logical_map": ROWS}
    write_placement(path, PLACEMENT, CLUSTER, "tensorrt-llm", layers=[3, 4])
    assert path.read_text() == (
        "num_slots: 6\n"
        "initial_global_assignments:\n"
        "  3: [0, 1, 2, 0, 1, 3]\n"
        "  4: [3, 2, 1, 3, 2, 0]\n"
        "layer_updates_per_iter: 0\n"
    )
    write_placement(path, PLACEMENT, CLUSTER, "ascend")
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
    with pytest.raises(ValueError, match="format must be one of vllm, sglang, tensorrt-llm, ascend, got 'eplb'"):
        write_placement(tmp_path / "map.json", PLACEMENT, CLUSTER, "eplb")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", "", "a placement must end in .npz, .json, .yaml or .yml"),
        ("a.json", "{", "must hold a placement of SGLang"),
        ("a.json", '{"layers": 3}', "must hold a placement of SGLang"),
        ("a.json", "[1, 2]", "must hold a placement of SGLang"),
        ("a.json", '{"physical_to_logical_map": [[0, 1], [0]]}', r"equally many slots in all layers, got \[1, 2\]"),
        ("a.json", '{"physical_to_logical_map": [[0.5, 1]]}', "must hold the numbers of experts, got float64"),
        ("a.yaml", "num_slots: [", "must hold a placement of SGLang"),
    ],
)
def test_files_without_a_placement_are_told(name, text, message, tmp_path):
    if name.endswith(".yaml"):
        pytest.importorskip("yaml")
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        read_placement(tmp_path / name)
