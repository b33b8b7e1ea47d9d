"""What `bieff serve` does, from options as a user types them."""

import contextlib
import socket
from collections.abc import Callable
from pathlib import Path

import uvicorn

from bieff.apps.predict import Predictor
from bieff.apps.serve import LOCAL, Limits, make_app
from bieff.clip import ClipName
from bieff.features.errors import ConfigError

Say = Callable[[str], None]

CONNECTIONS = 64
STOP_SECONDS = 10
"""Longest that the end waits for answers that are under way."""


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
    say: Say,
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
    clip = None
    if model is not None or pretrained is not None:
        clip = ClipName.of(model or ClipName().model, pretrained)
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
        shown = f"[{host}]" if ":" in host else host
        say(f"http://{shown}:{listener.getsockname()[1]}  (Ctrl-C ends it)")
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
