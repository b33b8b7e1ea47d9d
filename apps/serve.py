"""`bieff serve`: a page on this machine to drop a video on, type words, and see what it shows.

    GET  /          the page
    POST /predict   the video as the request's body; ?name= its file name, ?labels= the words,
                    ?windows= and ?every= seconds where scores along its time are asked for,
                    ?watch= a word of the asker's own
    GET  /progress  how many of the windows are done, by that word

An upload is counted as it comes in, so that a file that is too large or too slow is refused
before it is whole; it lies in a folder of its own, which is gone with the answer, or with the
process where that is told to end.
"""

import asyncio
import contextlib
import ipaddress
import re
import secrets
import signal
import socket
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import uvicorn
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from bieff.apps.connections import Connection
from bieff.apps.keyframes import shown
from bieff.apps.predict import open_predictor
from bieff.apps.predictor import Prediction, Predictor
from bieff.apps.timeline import described as timeline
from bieff.apps.timeline import light
from bieff.extract.config import LONGEST
from bieff.extract.datasets.files import VIDEO_SUFFIXES
from bieff.extract.lengths import Windows
from bieff.features.class_names import readable
from bieff.features.errors import BieffError, ConfigError, InputError

STOP_SECONDS = 10
"""Longest that the end waits for answers that are under way."""

LEAST_RATE = 10_000
"""Bytes a second of an upload."""

PATIENCE, GRACE = 1.0, 10.0
"""Seconds that an upload may be behind the least rate: where others wait, and at all."""

MOST_LABELS = 1000
SHOWN = 20
"""Scores that are sent; the best."""

MOST_WINDOWS = 2000


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """Limits of an upload."""

    num_bytes: int = 200 * 10**6
    seconds: float = 120.0
    waiting: int = 8
    """Uploads at a time, the one that is being looked at included."""

    each: int = 6
    """Uploads of one address."""


def serve(
    *,
    host: str,
    port: int,
    max_upload: int,
    deadline: float,
    say: Callable[[str], None],
    **who: Any,
) -> None:
    """Answer until Ctrl-C.

    Args:
        host: Address to listen at.
        port: 0 takes a free one.
        max_upload: Megabytes.
        deadline: Seconds that an upload may take, and as many for the decoding.
        say: Takes a line for people.
        who: Answers: as for `open_predictor`.

    Raises:
        BieffError: If an option, the run or the CLIP is not as it must be.
    """
    if max_upload < 1 or not 0 < deadline <= LONGEST:
        raise ConfigError(
            f"expected --max-upload above 0 and --deadline of at most {LONGEST} seconds, got "
            f"{max_upload} and {deadline}"
        )
    limits = Limits(num_bytes=max_upload * 10**6, seconds=deadline)
    _end_in_order()
    with (
        _listening(host, port) as listener,
        open_predictor(deadline=deadline, **who) as predictor,
    ):
        server = make_server(make_app(predictor, limits, names=_names(host)))
        say(f"{predictor.name}, {predictor.num_frames} frames")
        if predictor.clip.note:
            say(predictor.clip.note)
        if not _is_local(host):
            say(f"listening at {host}: whoever reaches this machine can use the page")
        name = f"[{host}]" if ":" in host else host
        say(f"http://{name}:{listener.getsockname()[1]}  (Ctrl-C ends it)")
        with contextlib.suppress(KeyboardInterrupt):  # the usual end
            server.run(sockets=[listener])


def _end_in_order() -> None:
    """Let this process end as an exception does from now on, so that no upload stays."""

    def end(*_: object) -> None:
        sys.exit(128 + signal.SIGTERM)

    signal.signal(signal.SIGTERM, end)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:  # a terminal closed; not with nohup
        signal.signal(signal.SIGHUP, lambda *_: signal.raise_signal(signal.SIGTERM))


def make_server(app: Starlette, connection: type[Connection] = Connection) -> uvicorn.Server:
    """The server that answers at a socket."""
    return uvicorn.Server(
        uvicorn.Config(
            app,
            http=connection,
            log_level="warning",
            lifespan="off",
            server_header=False,
            timeout_graceful_shutdown=STOP_SECONDS,
        )
    )


def _is_local(host: str) -> bool:
    return host == "localhost" or (_is_address(host) and ipaddress.ip_address(host).is_loopback)


def _is_address(host: str) -> bool:
    with contextlib.suppress(ValueError):
        return bool(ipaddress.ip_address(host))
    return False


def _names(host: str) -> frozenset[str]:
    """Names that a browser may call this machine by, beside its addresses."""
    own = () if _is_local(host) else (host, socket.gethostname(), socket.getfqdn())
    return frozenset(name.lower() for name in ("localhost", *own))


def _listening(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"cannot listen at {host} port {port}: {reason}; choose another --port or --host"
        ) from None


def make_app(
    predictor: Predictor, limits: Limits, *, names: frozenset[str] = frozenset({"localhost"})
) -> Starlette:
    """The page and its answers.

    Args:
        predictor: Asked about one video at a time.
        limits: Of an upload.
        names: What a browser may call this machine, beside addresses.  Any other name may be
            of a page from elsewhere that had it point here ("DNS rebinding").
    """
    site = _Site(predictor, limits, names)
    return Starlette(
        routes=[
            Route("/", site.page, methods=["GET"]),
            Route("/predict", site.predict, methods=["POST"]),
            Route("/progress", site.progress, methods=["GET"]),
        ]
    )


@dataclass(eq=False)
class _Upload:
    """One that is coming in."""

    address: str
    begun: float
    clock: asyncio.Timeout
    received: int = 0

    def slow_at(self, patience: float) -> float:
        """When it is too slow, if nothing more comes."""
        return self.begun + patience + self.received / LEAST_RATE


class _RefusedError(Exception):
    """An answer with this status and sentence."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


class _Site:
    def __init__(self, predictor: Predictor, limits: Limits, names: frozenset[str]) -> None:
        self._predictor = predictor
        self._limits = limits
        self._names = names
        self._turn = asyncio.Lock()
        self._inside: Counter[str] = Counter()
        self._coming: list[_Upload] = []
        self._far: dict[str, tuple[int, int]] = {}
        """Windows that are done and that there are, of videos under way by the asker's word."""
        folder = FileSystemLoader(Path(__file__).parent / "templates")
        templates = Environment(loader=folder, autoescape=True, undefined=StrictUndefined)
        self._template = templates.get_template("serve.html")

    async def page(self, request: Request) -> Response:
        if not self._is_own_name(request):
            return Response("this name is of another machine", 400)
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

    async def progress(self, request: Request) -> Response:
        if not self._is_own_name(request):
            return Response("this name is of another machine", 400)
        done, count = self._far.get(request.query_params.get("watch", ""), (0, 0))
        return JSONResponse({"done": done, "of": count}, headers={"Cache-Control": "no-store"})

    def _is_own_name(self, request: Request) -> bool:
        with contextlib.suppress(ValueError):  # brackets that do not match
            name = urlsplit(f"//{request.headers.get('host', '')}").hostname or ""
            return _is_address(name) or name.removesuffix(".") in self._names
        return False

    async def predict(self, request: Request) -> Response:
        address = "" if request.client is None else request.client.host
        try:
            origin, host = request.headers.get("origin"), request.headers.get("host")
            own = (None, f"http://{host}", f"https://{host}")
            if origin not in own or not self._is_own_name(request):
                raise _RefusedError(403, "this address answers its own page only")
            self._admit(address)
            self._inside[address] += 1
            try:
                return JSONResponse(await self._answer(request, address))
            finally:
                self._inside -= Counter([address])
        except _RefusedError as error:
            # what is still coming in is not wanted: the connection ends with the answer
            headers = {"Connection": "close"}
            return JSONResponse({"error": str(error)}, error.status, headers=headers)
        except BieffError as error:
            return JSONResponse({"error": str(error)}, 400)

    def _admit(self, address: str) -> None:
        """Refuse one too many, unless a slow one can go in its place."""
        is_full = self._inside.total() >= self._limits.waiting
        if not is_full and self._inside[address] < self._limits.each:
            return
        now = asyncio.get_running_loop().time()
        slow = [u for u in self._coming if u.slow_at(PATIENCE) < now and not u.clock.expired()]
        mine = [u for u in slow if u.address == address]
        if not (mine or (slow and is_full)):
            raise _RefusedError(503, "too many videos at a time; try again in a moment")
        gone = (mine or slow)[0]
        self._coming.remove(gone)
        gone.clock.reschedule(now)

    async def _answer(self, request: Request, address: str) -> dict[str, Any]:
        labels = typed_labels(request.query_params.get("labels", ""))
        windows = typed_windows(request.query_params)
        watch = request.query_params.get("watch", "")
        name = Path(request.query_params.get("name", "")).name or "video"
        suffix = Path(name).suffix.lower()
        with tempfile.TemporaryDirectory(prefix="bieff-serve-") as folder:
            path = Path(folder) / f"upload{suffix if suffix in VIDEO_SUFFIXES else '.mp4'}"
            await self._receive(request, path, address)
            async with self._turn:
                found = await run_in_threadpool(self._predict, path, labels, windows, watch)
        return described(found, name)

    async def _receive(self, request: Request, path: Path, address: str) -> None:
        most, seconds = self._limits.num_bytes, self._limits.seconds
        too_large = _RefusedError(
            413, f"the video is larger than {most / 10**6:g} MB; see --max-upload"
        )
        announced = request.headers.get("content-length", "0")
        if announced.isdecimal() and int(announced) > most:
            raise too_large
        now = asyncio.get_running_loop().time
        clock = asyncio.timeout(min(seconds, GRACE))
        upload = _Upload(address, now(), clock)
        self._coming.append(upload)
        try:
            async with clock:
                with path.open("wb") as file:
                    async for part in request.stream():
                        upload.received += len(part)
                        if upload.received > most:
                            raise too_large
                        await run_in_threadpool(file.write, part)
                        if upload in self._coming:  # not told to go
                            clock.reschedule(min(upload.begun + seconds, upload.slow_at(GRACE)))
        except TimeoutError:
            if now() >= upload.begun + seconds:
                raise _RefusedError(
                    408, f"the upload took longer than {seconds:,.0f} s"
                ) from None
            raise _RefusedError(
                408, f"the upload came slower than {LEAST_RATE / 1000:,.0f} kB/s; try again"
            ) from None
        except ClientDisconnect:
            raise _RefusedError(400, "the upload was broken off") from None
        except OSError as error:
            raise _RefusedError(507, f"the upload cannot be kept: {error.strerror}") from None
        finally:
            if upload in self._coming:
                self._coming.remove(upload)
        if not upload.received:
            raise _RefusedError(400, "no video came; choose a file")

    def _predict(
        self, path: Path, labels: list[str] | None, windows: Windows | None, watch: str
    ) -> list[Prediction]:
        found: list[Prediction] = []
        with contextlib.ExitStack() as stack:
            stack.callback(self._far.pop, watch, None)
            asked = self._predictor.predict([path], labels, windows=windows)
            for prediction in stack.enter_context(contextlib.closing(asked)):
                _, count = prediction.place
                if count > MOST_WINDOWS:
                    raise InputError(
                        f"windows: expected at most {MOST_WINDOWS:,}, got {count:,}; let them "
                        "begin further apart"
                    )
                found.append(prediction if windows is None else light(prediction))
                if watch:  # or everybody without a word would share one count
                    self._far[watch] = len(found), count
        return found


def typed_windows(typed: Mapping[str, str]) -> Windows | None:
    """The windows asked for; None where the fields are empty.

    Raises:
        InputError: If a field is no number.
        ConfigError: If windows have no length, or leave gaps.
    """
    try:
        length, every = (
            float(text) if (text := typed.get(name, "").strip()) else None
            for name in ("windows", "every")
        )
    except ValueError:
        raise InputError(
            f"windows: expected two numbers of seconds, got {typed.get('windows', '')!r} and "
            f"{typed.get('every', '')!r}"
        ) from None
    return Windows.of(length, every)


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


def described(windows: Sequence[Prediction], name: str) -> dict[str, Any]:
    """The prediction about a video, or those about its windows, as the page shows them."""
    found = windows[0]
    reason = next((window.message for window in windows if window.message), "")
    message = reason.replace(repr(str(found.video)), repr(name))
    caption, frames = shown(found) if found.window is None else ("", [])
    along = timeline(windows)
    ranking = along.pop("mean")[:SHOWN]
    return {
        "name": name,
        "message": message.replace(str(found.video), name),
        "scores": [{"label": label, "score": score} for label, score in ranking],
        "num_labels": len(found.labels),
        "caption": caption,
        "frames": frames,
        "windows": [] if found.window is None else along["windows"],
    }
