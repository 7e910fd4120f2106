"""Whether a file can be written, asked before any work is done."""

import os
from pathlib import Path


def check_output_file(path: str | os.PathLike[str], name: str = "path") -> Path:
    """Return `path` as a Path, or raise an error if no file can be written there.

    An existing file keeps its content, and a missing one is not left behind.

    Parameters
    ----------
    path : path-like
        A file in a folder that exists; the file itself may be missing or old.
    name : str
        What the caller names the argument, for the message.

    Raises
    ------
    OSError
        If the folder is missing, the path is a folder, or the system refuses to write it.
    """
    target = Path(path)
    if target.is_dir():
        raise IsADirectoryError(f"{name} must be a file, got the folder {target}")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{name} must lie in a folder that exists, got {target}")
    is_new = not target.exists()
    try:
        with target.open("a"):
            pass
    except OSError as error:
        raise type(error)(f"{name} must be a writable file, got {target} ({error.strerror})") from error
    if is_new:
        target.unlink()
    return target


def check_picture_file(path: str | os.PathLike[str], name: str = "path") -> Path:
    """Return `path` as a Path, or raise an error if matplotlib can write no picture there.

    Raises
    ------
    OSError
        In the cases of `check_output_file`.
    ValueError
        If the suffix names no format of pictures.
    """
    # Imported here: a check of any other file needs no matplotlib.
    from matplotlib.backend_bases import FigureCanvasBase

    formats = sorted(FigureCanvasBase.get_supported_filetypes())
    if Path(path).suffix[1:].lower() not in formats:
        raise ValueError(f"{name} must end in one of .{', .'.join(formats)}, got {Path(path)}")
    return check_output_file(path, name)
