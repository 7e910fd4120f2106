"""The device that the demo trains on."""

import torch

DEVICES = ("auto", "cpu", "cuda")


def find_device(name: str) -> torch.device:
    """Return the torch device of a name; ``auto`` takes a GPU if torch sees one."""
    if name not in DEVICES:
        raise ValueError(f"device must be one of {', '.join(DEVICES)}, got {name!r}")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device must be cpu or auto here: cuda was asked for, but torch sees none")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)
