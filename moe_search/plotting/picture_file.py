"""Whether a picture can be written, asked before any work is done."""

import os
from pathlib import Path

from matplotlib.backend_bases import FigureCanvasBase

from moe_search.plotting.output_file import check_output_file


def check_picture_file(path: str | os.PathLike[str], name: str = "path") -> Path:
    """Return `path` as a Path, or raise an error if matplotlib can write no picture there.

    Raises
    ------
    OSError
        As `check_output_file`.
    ValueError
        If the suffix names no format of pictures.
    """
    formats = sorted(FigureCanvasBase.get_supported_filetypes())
    if Path(path).suffix[1:].lower() not in formats:
        raise ValueError(f"{name} must end in one of .{', .'.join(formats)}, got {Path(path)}")
    return check_output_file(path, name)
