"""Programs in processes of their own, and waiting for what they do to files."""

import subprocess
import sys
import time

BIEFF = (sys.executable, "-P", "-m", "bieff.cli")


def bieff(*arguments, **options):
    """A command as a user types it, what it prints in one pipe."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen([*BIEFF, *map(str, arguments)], **{**pipes, **options})


def wait_for(condition, process=None, *, seconds=300.0):
    """Wait until something has come about that nobody tells of, while a process lives."""
    end = time.monotonic() + seconds
    while not condition():
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() < end, "it has not come about"
        time.sleep(0.01)
