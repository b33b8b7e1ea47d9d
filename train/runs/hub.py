"""Runs on the Hugging Face hub: `hf-hub:ORG/NAME`, or `hf-hub:ORG/NAME@REVISION`.

Of a repository, whoever filled it, files of two kinds are read, under names known here:
run.json, and the weights, which are safetensors.  What run.json says is compared, not obeyed.
"""

import importlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bieff.features.errors import InputError
from bieff.features.files import disk_errors, read_json, write_atomically
from bieff.train.runs.checkpoint import BEST, LAST

PREFIX = "hf-hub:"
FETCHED = Path("runs") / "hub"
"""Folder of the runs that were fetched, one for each commit of each repository."""

_PART = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,95}"
_NAME = re.compile(rf"({_PART})/({_PART})(?:@({_PART}))?")
_THEN = "check the name, the connection and `hf auth whoami`"


def is_on_hub(run: Path) -> bool:
    """True for the name of a run on the hub."""
    return str(run).startswith(PREFIX)


def parse_name(name: str) -> tuple[str, str | None]:
    """Repository and revision of `hf-hub:ORG/NAME@REVISION`.

    Raises:
        InputError: If it is no such name.
    """
    found = _NAME.fullmatch(name.removeprefix(PREFIX))
    if found is None:
        raise InputError(f"expected {PREFIX}ORG/NAME, got {name!r}")
    return f"{found[1]}/{found[2]}", found[3]


def fetch(name: str, *, record: str) -> Path:
    """Fetch a run from the hub, unless that commit of it is here; returns its folder.

    Args:
        name: As `hf-hub:ORG/NAME`.
        record: Name of the file with its record.

    Raises:
        InputError: If it is not there, is no run, or cannot be fetched.
    """
    repository, revision = parse_name(name)
    hub: Any = importlib.import_module("huggingface_hub")
    errors: Any = importlib.import_module("huggingface_hub.errors")

    def download(file: str, commit: str | None) -> Path:
        return Path(hub.hf_hub_download(repository, file, revision=commit))

    with hub_errors(f"fetch {name}"):
        cached = download(record, revision)
        commit = cached.parent.name  # huggingface_hub's cache: snapshots/COMMIT/FILE
        folder = FETCHED / f"{repository.replace('/', '--')}-{commit[:8]}"
        if (folder / record).is_file():
            return folder
        weights = {LAST: download(LAST, commit)}
        try:
            weights[BEST] = download(BEST, commit)
        except errors.EntryNotFoundError as error:  # of a run without validation
            if isinstance(error, errors.LocalEntryNotFoundError):  # the network is down
                raise
    held = read_json(cached, {"data_set": str}, then="take another run")
    # a path on another's machine, which is not for this one to open
    held["store"] = str(Path("features") / re.sub(r"[^\w-]", "_", held["data_set"]))
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for file, path in weights.items():
            write_atomically(folder / file, path.read_bytes())
        write_atomically(folder / record, f"{json.dumps(held, indent=2)}\n".encode())
    return folder


def upload(folder: Path, name: str, *, private: bool) -> str:
    """Put the files of a folder into a repository on the hub, which is made if need be.

    Returns:
        Its address.

    Raises:
        InputError: If the name is none, or the hub refuses.
    """
    repository, revision = parse_name(name)
    hub: Any = importlib.import_module("huggingface_hub")
    with hub_errors(f"write {name}"):
        api = hub.HfApi()
        address = api.create_repo(repository, private=private or None, exist_ok=True)
        files = [
            hub.CommitOperationAdd(path_in_repo=file.name, path_or_fileobj=file)
            for file in sorted(folder.iterdir())
        ]
        message = "A run of bieff"
        api.create_commit(repository, files, commit_message=message, revision=revision)
    return str(address)


@contextmanager
def hub_errors(what: str) -> Iterator[None]:
    """Turn what the hub and the network refuse into one sentence.

    Raises:
        InputError: In place of their errors.
    """
    errors: Any = importlib.import_module("huggingface_hub.errors")
    try:
        yield
    except (OSError, errors.HFValidationError, errors.HTTPError) as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"cannot {what}: {reason}; {_THEN}") from error
