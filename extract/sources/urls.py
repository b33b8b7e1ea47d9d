"""Folders of videos at addresses, such as `s3://bucket/videos`, through fsspec.

An address is kept as a path, whose slashes pathlib joins: `s3:/bucket/videos`.  It never holds
a secret: credentials are found by fsspec, in its own files and variables.
"""

import os
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import quote, unquote

from bieff.extract.sources.tars import plain
from bieff.features.errors import InputError

_ADDRESS = re.compile(r"([a-z][a-z0-9+.-]+):/+(?=[^/])(.*)", re.DOTALL)
_USER = re.compile(r"(?<=:/)(/?)[^/\s'\"]*@")
_QUERY = re.compile(r"[?#][^\s'\")>]*")

_AT_ONCE = 16
"""Sizes that are asked for at the same time, where a listing does not say them."""


def url_of(path: str | os.PathLike[str]) -> str | None:
    """The address that a path stands for; None if it is one of this machine."""
    match = _ADDRESS.fullmatch(os.fspath(path))
    return f"{match[1]}://{match[2]}" if match else None


def shown(path: str | os.PathLike[str]) -> str:
    """A path or an address for people."""
    return url_of(path) or os.fspath(path)


def without_secrets(text: str, query: str = "?...") -> str:
    """A text whose addresses have no user and password any more, and another query."""
    return _QUERY.sub(query, _USER.sub(r"\1", text)) if ":/" in text else text


def require_open(path: str | os.PathLike[str]) -> None:
    """Refuse an address that holds a secret, before it is written anywhere.

    Raises:
        InputError: If it has a user, a password or a query, which are not told.
    """
    url = url_of(path) or ""
    if (bare := without_secrets(url, "")) != url:
        raise InputError(
            f"{bare}: expected an address without user, password and query, as it is kept with "
            "the features; give credentials by the files and variables of fsspec, see "
            "docs/real-data.md"
        )


def said(error: Exception) -> str:
    """What a library says of an address, on one line and without secrets."""
    text = str(error) or type(error).__name__
    printable = "".join(c if c.isprintable() else " " for c in without_secrets(text))
    return " ".join(printable.split())[:300]


def file_system(url: str) -> Any:
    """The file system of an address, made once.

    Raises:
        InputError: If there is none of that name, or its package is missing.
    """
    import fsspec

    name = url.partition(":")[0]
    try:
        return fsspec.filesystem(name)
    except ImportError as error:
        raise InputError(
            f"cannot read {name}:// here: {said(error)}; for s3:// and https:// "
            '`pip install "bieff[cloud]"`'
        ) from None
    except ValueError as error:
        raise InputError(
            f"cannot read {name}:// here: {said(error)}; name a folder, a tar file, or an "
            "address of a kind that fsspec knows, such as s3://BUCKET/FOLDER"
        ) from None


def address(url: str) -> str:
    """An address as its file system takes it: names of https are written with %."""
    return quote(url, safe=":/[]") if _is_web(url) else url


def _is_web(url: str) -> bool:
    return url.startswith(("http://", "https://"))


def objects_at(url: str) -> tuple[dict[str, int], list[str]]:
    """Paths of all files below an address, with their bytes (0: nobody says), and odd names.

    Raises:
        InputError: If it cannot be listed.
    """
    files = file_system(url)
    base = url.rstrip("/")
    # left alone, fsspec's walk over web pages passes over folders whose server does not answer
    careful = {"on_error": _unless_missing} if _is_web(url) else {}
    try:
        found = files.find(address(base) + "/", detail=True, **careful)
    except Exception as error:  # each file system has errors of its own
        raise InputError(
            f"cannot list {url}: {said(error)}; check address and credentials, which are "
            "looked for in the files and variables of fsspec, see docs/real-data.md"
        ) from None
    below = files._strip_protocol(address(base)).rstrip("/") + "/"
    sizes: dict[str, int] = {}
    odd, unknown = [], {}
    for place, info in found.items():
        name = place.removeprefix(below)
        name = unquote(name) if _is_web(url) else name
        if plain(name) != name or place == name:
            odd.append(name)
        else:
            sizes[name] = info.get("size") or 0
            if info.get("size") is None:
                unknown[name] = place
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        asked = pool.map(lambda place: _size(files, place), unknown.values())
        sizes |= dict(zip(unknown, asked, strict=True))
    return sizes, odd


def _unless_missing(error: Exception) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


def _size(files: Any, place: str) -> int:
    try:
        return files.info(place).get("size") or 0
    except Exception:  # it is told when the video is fetched
        return 0
