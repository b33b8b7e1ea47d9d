"""Commands of `bieff` in a process that may not call out.

python -m helpers.guarded < a JSON list of lists of arguments
"""

import json
import os
import resource
import socket
import subprocess
import sys

from helpers.places import TESTS

_CALLS = {"socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"}


def run_all(*commands, **environment):
    """Each command's exit code, output, and what it asked of the network."""
    done = subprocess.run(
        [sys.executable, "-m", "helpers.guarded"],
        input=json.dumps([[str(word) for word in command] for command in commands]),
        env={**os.environ, "PYTHONPATH": str(TESTS), **environment},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


class Guard:
    """Notes every call to the network, and lets none through."""

    def __init__(self):
        self.calls = []
        sys.addaudithook(self)

    def __call__(self, event, arguments):
        is_call = event in _CALLS
        if event == "socket.connect":
            is_call = arguments[0].family in (socket.AF_INET, socket.AF_INET6)
        if is_call:
            self.calls.append(f"{event}: {arguments[:2]}")
            raise OSError("no network here")


def main():
    from click.testing import CliRunner

    from bieff.cli import main as bieff

    if size := os.environ.get("MOST_FILE_BYTES"):  # fails like a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(size), int(size)))
    guard = Guard()
    found = []
    for command in json.load(sys.stdin):
        guard.calls = []
        result = CliRunner().invoke(bieff, command)
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        found.append({"code": result.exit_code, "said": result.output, "calls": guard.calls})
    print(json.dumps(found))


if __name__ == "__main__":
    main()
