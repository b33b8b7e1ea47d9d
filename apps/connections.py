"""Connections of `bieff serve`: slow ones give way, so that they lock nobody out.

uvicorn waits for the head of a request for as long as it takes, and answers 503 to everybody
when there are too many connections.  Here a head has some seconds, an address has a part of
the connections, and where there are too many, the one that has been idle longest ends.
"""

import asyncio
from collections import Counter
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol


class Connection(H11Protocol):
    """One connection, as uvicorn's setting `http` takes it."""

    most = 64
    """Connections at a time."""

    each = 32
    """Connections of one address."""

    head_seconds = 10.0
    """Seconds for the head of a request, from the connection or from its first byte."""

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Take the connection; another one may have to go."""
        super().connection_made(transport)
        self.since = self.loop.time()
        self._make_room()
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Take bytes, and look whether a head is whole."""
        super().data_received(data)
        self._watch()

    def connection_lost(self, error: Exception | None) -> None:
        """Forget the connection."""
        self._stop()
        super().connection_lost(error)

    @property
    def address(self) -> str:
        """Address of whoever asks, without the port."""
        return "" if self.client is None else self.client[0]

    @property
    def is_idle(self) -> bool:
        """Nothing is asked, or the answer is there and not read."""
        return self.cycle is None or self.cycle.response_started

    def _watch(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop()
        elif self._timer is None:
            self._timer = self.loop.call_later(self.head_seconds, self.transport.abort)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _make_room(self) -> None:
        there = [c for c in self.connections if isinstance(c, Connection)]
        there = [c for c in there if not c.transport.is_closing()]
        own = [c for c in there if c.address == self.address]
        crowd = own if len(own) > self.each else there
        if crowd is there and len(there) <= self.most:
            return
        idle = [c for c in crowd if c.is_idle and c is not self]
        count = Counter(c.address for c in idle)
        gone = min(idle, key=lambda c: (-count[c.address], c.since), default=self)
        gone.transport.abort()
