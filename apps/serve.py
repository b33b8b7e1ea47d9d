"""`bieff serve`: a page on this machine to drop a video on, type words, and see what it shows.

    GET  /          the page
    POST /predict   the video as the request's body; ?name= its file name, ?labels= the words

An upload is counted as it comes in, so that a file that is too large or too slow is refused
before it is whole; it lies in a folder of its own, which is gone with the answer.
"""

import asyncio
import contextlib
import re
import secrets
import socket
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import uvicorn
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from bieff.apps.keyframes import shown
from bieff.apps.predictor import Prediction, Predictor
from bieff.clip import ClipName
from bieff.extract.datasets.files import VIDEO_SUFFIXES
from bieff.features.class_names import readable
from bieff.features.errors import BieffError, ConfigError, InputError

LOCAL = ("127.0.0.1", "localhost", "::1")

CONNECTIONS = 64
STOP_SECONDS = 10
"""Longest that the end waits for answers that are under way."""

MOST_LABELS = 1000
SHOWN = 20
"""Scores that are sent; the best."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What an upload may take."""

    num_bytes: int = 200 * 10**6
    seconds: float = 120.0
    waiting: int = 8
    """Uploads at a time, the one that is being looked at included."""


def serve(
    *,
    run: Path | None,
    model: str | None,
    pretrained: str | None,
    frames: int | None,
    device: str | None,
    host: str,
    port: int,
    max_upload: int,
    deadline: float,
    say: Callable[[str], None],
) -> None:
    """Answer until Ctrl-C.

    Args:
        run: Folder of a run; None asks frozen CLIP.
        model: As for `bieff predict`.
        pretrained: The same.
        frames: The same.
        device: The same.
        host: Address to listen at.
        port: 0 takes a free one.
        max_upload: Megabytes.
        deadline: Seconds that an upload may take, and as many for the decoding.
        say: Takes a line for people.

    Raises:
        BieffError: If an option, the run or the CLIP is not as it must be.
    """
    if max_upload < 1 or not deadline > 0:
        raise ConfigError(
            f"expected --max-upload and --deadline above 0, got {max_upload} and {deadline}"
        )
    clip = ClipName.given(model, pretrained)
    limits = Limits(num_bytes=max_upload * 10**6, seconds=deadline)
    with (
        _listening(host, port) as listener,
        Predictor.load(
            run=run, clip=clip, device=device, frames=frames, deadline=deadline
        ) as predictor,
    ):
        is_local = host in LOCAL
        app = make_app(predictor, limits, hosts=LOCAL if is_local else ("*",))
        server = uvicorn.Server(
            uvicorn.Config(
                app,
                log_level="warning",
                lifespan="off",
                server_header=False,
                limit_concurrency=CONNECTIONS,
                timeout_graceful_shutdown=STOP_SECONDS,
            )
        )
        say(f"{predictor.name}, {predictor.num_frames} frames")
        if not is_local:
            say(f"listening at {host}: whoever reaches this machine can use the page")
        name = f"[{host}]" if ":" in host else host
        say(f"http://{name}:{listener.getsockname()[1]}  (Ctrl-C ends it)")
        with contextlib.suppress(KeyboardInterrupt):  # the usual end
            server.run(sockets=[listener])


def _listening(host: str, port: int) -> socket.socket:
    """Take the address before anything slow is done."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"cannot listen at {host} port {port}: {reason}; choose another --port or --host"
        ) from None


def make_app(
    predictor: Predictor, limits: Limits, *, hosts: tuple[str, ...] = LOCAL
) -> Starlette:
    """The page and its answers.

    Args:
        predictor: Asked about one video at a time.
        limits: Of an upload.
        hosts: Names that a browser may call this machine by.  With the local ones alone, a
            page from elsewhere cannot reach it through a name of its own ("DNS rebinding").
    """
    site = _Site(predictor, limits)
    return Starlette(
        routes=[
            Route("/", site.page, methods=["GET"]),
            Route("/predict", site.predict, methods=["POST"]),
        ],
        middleware=[
            Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False)
        ],
    )


class _RefusedError(Exception):
    """An answer with this status and sentence."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


class _Site:
    def __init__(self, predictor: Predictor, limits: Limits) -> None:
        self._predictor = predictor
        self._limits = limits
        self._turn = asyncio.Lock()
        self._inside = 0
        folder = FileSystemLoader(Path(__file__).parent / "templates")
        templates = Environment(loader=folder, autoescape=True, undefined=StrictUndefined)
        self._template = templates.get_template("serve.html")

    async def page(self, request: Request) -> Response:
        run = self._predictor.run
        nonce = secrets.token_urlsafe(16)
        page = self._template.render(
            nonce=nonce,
            name=self._predictor.name,
            num_frames=self._predictor.num_frames,
            classes=[] if run is None else list(run.record["class_names"]),
            megabytes=self._limits.num_bytes // 10**6,
            suffixes=",".join(sorted(VIDEO_SUFFIXES)),
        )
        policy = (
            f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; "
            "img-src data:; media-src blob:; connect-src 'self'; base-uri 'none'; "
            "form-action 'none'; frame-ancestors 'none'"
        )
        headers = {
            "Content-Security-Policy": policy,
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cache-Control": "no-store",
        }
        return HTMLResponse(page, headers=headers)

    async def predict(self, request: Request) -> Response:
        try:
            _require_own_page(request)
            if self._inside >= self._limits.waiting:
                raise _RefusedError(503, "too many videos at a time; try again in a moment")
            self._inside += 1
            try:
                return JSONResponse(await self._answer(request))
            finally:
                self._inside -= 1
        except _RefusedError as error:
            # what is still coming in is not wanted: the connection ends with the answer
            headers = {"Connection": "close"}
            return JSONResponse({"error": str(error)}, error.status, headers=headers)
        except BieffError as error:
            return JSONResponse({"error": str(error)}, 400)

    async def _answer(self, request: Request) -> dict[str, Any]:
        labels = typed_labels(request.query_params.get("labels", ""))
        name = Path(request.query_params.get("name", "")).name or "video"
        suffix = Path(name).suffix.lower()
        with tempfile.TemporaryDirectory(prefix="bieff-serve-") as folder:
            path = Path(folder) / f"upload{suffix if suffix in VIDEO_SUFFIXES else '.mp4'}"
            await self._receive(request, path)
            async with self._turn:
                found = await run_in_threadpool(self._predict, path, labels)
        return described(found, name)

    async def _receive(self, request: Request, path: Path) -> None:
        most, received = self._limits.num_bytes, 0
        too_large = _RefusedError(
            413, f"the video is larger than {most / 10**6:g} MB; see --max-upload"
        )
        announced = request.headers.get("content-length", "0")
        if announced.isdecimal() and int(announced) > most:
            raise too_large
        try:
            async with asyncio.timeout(self._limits.seconds):
                with path.open("wb") as file:
                    async for part in request.stream():
                        received += len(part)
                        if received > most:
                            raise too_large
                        await run_in_threadpool(file.write, part)
        except TimeoutError:
            raise _RefusedError(
                408, f"the upload took longer than {self._limits.seconds:,.0f} s"
            ) from None
        except ClientDisconnect:
            raise _RefusedError(400, "the upload was broken off") from None
        if not received:
            raise _RefusedError(400, "no video came; choose a file")

    def _predict(self, path: Path, labels: list[str] | None) -> Prediction:
        [found] = self._predictor.predict([path], labels)
        return found


def _require_own_page(request: Request) -> None:
    """Refuse requests that another site's page makes in the user's browser."""
    origin = request.headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != request.headers.get("host"):
        raise _RefusedError(403, "this address answers its own page only")


def typed_labels(text: str) -> list[str] | None:
    """Class names out of a text with commas or lines between them; None where it is empty.

    Unlike `bieff predict --labels`, never the name of a file: whoever types here need not be
    somebody who may read this machine's files.

    Raises:
        InputError: If there is one alone, or too many.
    """
    names = [readable(name.strip()) for name in re.split(r"[,\n]", text) if name.strip()]
    if not names:
        return None
    if not 2 <= len(names) <= MOST_LABELS:
        raise InputError(
            f"class names: expected 2 to {MOST_LABELS:,} with commas between them, got "
            f"{len(names):,}"
        )
    return names


def described(found: Prediction, name: str) -> dict[str, Any]:
    """What the page shows of a prediction, ready for JSON."""
    message = found.message.replace(repr(str(found.video)), repr(name))
    caption, frames = shown(found)
    return {
        "name": name,
        "message": message.replace(str(found.video), name),
        "scores": [{"label": label, "score": score} for label, score in found.ranking(SHOWN)],
        "num_labels": len(found.labels),
        "caption": caption,
        "frames": frames,
    }
