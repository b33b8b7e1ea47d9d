"""`bieff ablate` that says how far its runs are, a line each time it looks; no bars."""

from contextlib import contextmanager

from bieff import cli
from bieff.apps import progress


class Told:
    def begin(self, total, done):
        print(f"{total} runs, {done} of them done already", flush=True)

    def update(self, name, what, share):
        print("at", name, what.replace(" ", "-"), share, flush=True)

    def end(self, name, line):
        print(name, line, flush=True)


@contextmanager
def told():
    yield Told()


if __name__ == "__main__":
    progress.runs_bar = told
    cli.main()
