"""Ctrl-C from a timer."""

import contextlib
import os
import signal
import threading


@contextlib.contextmanager
def ctrl_c_after(seconds):
    # What a shell starts in the background ignores Ctrl-C, and passes that on to all it starts.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
        signal.signal(signal.SIGINT, before)
