"""A process that is killed in the middle of its work."""

import signal
import subprocess
import sys
import time


def run_and_kill(code, file, lines):
    """Run Python code that sees this path, and kill it when a file holds as many lines that contain a text.

    Parameters
    ----------
    code : str
    file : Path
    lines : (bytes, int)
        The text, and how many lines must contain it.
    """
    process = subprocess.Popen([sys.executable, "-c", f"import sys\nsys.path[:0] = {sys.path!r}\n{code}"])
    deadline = time.monotonic() + 60
    text, count = lines
    try:
        while not file.exists() or sum(text in line for line in file.read_bytes().split(b"\n")[:-1]) < count:
            assert time.monotonic() < deadline, f"{file} did not come to hold {count} lines with {text!r}"
            assert process.poll() is None, "the process ended by itself"
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
