"""/metrics, /livez and /readyz on one port, and the watchdog that ends a process which hangs.

The http threads and the watchdog only read, and join nothing.
"""

import faulthandler
import logging
import os
import socket
import time
from collections.abc import Callable, Iterable, Sequence
from threading import Thread
from typing import TYPE_CHECKING
from wsgiref.simple_server import WSGIRequestHandler, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.exposition import ThreadingWSGIServer

from worker.activity import Activity, Clock
from worker.errors import EXIT_STALLED

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIEnvironment

log = logging.getLogger(__name__)

# A heartbeat goes to the coordinator every 3 s, so a broker that is there answers at least that often.
_SILENCE_S = 10.0
_WATCH_EVERY_S = 0.5
_LOOKS = 4
_INTERPRETER_PATIENCE_S = 30.0  # beyond the stall timeout
_STANDARD_ERROR = 2


class Health:
    """What the main thread tells and the probes read. Each attribute is written by the main thread alone."""

    def __init__(self, stall_timeout_s: float, clock: Clock = time.monotonic) -> None:
        """Begin alive and not ready."""
        self.stall_timeout_s = stall_timeout_s
        self._clock = clock
        self._activities: Sequence[Activity] = ()
        self._threads: Sequence[Thread] = ()
        self._joined = False
        self._answered_s = float("-inf")
        self._end_by_s = float("inf")

    def watch(self, activities: Sequence[Activity], threads: Sequence[Thread]) -> None:
        """Look at these threads from now on; the consumer has yet to join its group."""
        self._activities, self._threads = activities, threads
        self._joined = False

    def note_group(self, *, joined: bool, silent_s: float) -> None:
        """Note whether the consumer is settled in its group, and how long ago a broker answered that is connected."""
        self._joined = self._joined or joined  # a member that rebalances goes on working
        self._answered_s = max(self._answered_s, self._clock() - silent_s)

    def expect_end_within(self, seconds: float) -> None:
        """Let the watchdog end the process if it is still there then; not ready from now on."""
        self._end_by_s = self._clock() + seconds

    def stalled(self) -> str | None:
        """Return what hangs or has died, None where all is well."""
        late = [str(it) for it in self._activities if it.is_stalled(self.stall_timeout_s)]
        dead = [f"{thread.name} is dead" for thread in self._threads if not thread.is_alive()]
        if self._clock() > self._end_by_s:
            late.append("the end is overdue")
        return "; ".join(late + dead) or None

    def at_work(self) -> str:
        """Name every thread that is at something, with its record and for how long."""
        return "; ".join(str(it) for it in self._activities if it.is_busy) or "no thread is at work"

    def unready(self) -> str | None:
        """Return what is missing for work, None where nothing is."""
        if self._end_by_s < float("inf"):
            return "the worker stops"
        if not self._threads:
            return "the model loads"
        if not self._joined:
            return "the consumer has not joined its group"
        silence_s = self._clock() - self._answered_s
        if silence_s == float("inf"):
            return "no broker has answered yet"
        return f"no broker has answered for {silence_s:.0f} s" if silence_s > _SILENCE_S else None


class HealthServer:
    """Serves one port from threads of its own."""

    def __init__(self, host: str, port: int, registry: CollectorRegistry, health: Health) -> None:
        """Listen on `host` (empty: all addresses) and `port` (0: any).

        Raises: `OSError` where the port is taken.
        """
        self._metrics = make_wsgi_app(registry)
        self._health = health
        self._server = make_server(host, port, self._answer, _server_class(host), handler_class=_QuietHandler)
        self.port: int = self._server.server_port
        Thread(target=self._server.serve_forever, name="http", daemon=True).start()

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        match environ["PATH_INFO"]:
            case "/metrics":
                exposition: Iterable[bytes] = self._metrics(environ, start_response)
                return exposition
            case "/livez":
                return _say(start_response, self._health.stalled())
            case "/readyz":
                return _say(start_response, self._health.unready())
        start_response("404 Not Found", [("Content-Type", "text/plain; charset=utf-8")])
        return [b"/metrics, /livez, /readyz\n"]


def start_watchdog(health: Health, end: Callable[[int], object] = os._exit) -> None:
    """End the process once something hangs: a native call that hangs can't be ended in any other way.

    That is 2 s later than /livez says so: a probe may see it, and a dead thread's error is the main thread's first.
    The log then names what every thread is at, and standard error gets their stacks. Native code that hangs with the
    interpreter's lock stops this thread too: then faulthandler's own, which needs no lock, writes the stacks and ends
    the process with 1.
    """
    patience_s = health.stall_timeout_s + _INTERPRETER_PATIENCE_S

    def watch() -> None:
        looks = 0
        trouble: str | None = None
        while looks < _LOOKS:
            faulthandler.dump_traceback_later(patience_s, exit=True, file=_STANDARD_ERROR)
            time.sleep(_WATCH_EVERY_S)
            trouble = health.stalled()
            looks = looks + 1 if trouble else 0
        log.critical("ending the process: %s; at work: %s", trouble, health.at_work())
        for handler in logging.getLogger().handlers:
            handler.flush()
        faulthandler.cancel_dump_traceback_later()
        faulthandler.dump_traceback(_STANDARD_ERROR)
        end(EXIT_STALLED)

    Thread(target=watch, name="watchdog", daemon=True).start()


def _say(start_response: "StartResponse", trouble: str | None) -> Iterable[bytes]:
    status = "200 OK" if trouble is None else "503 Service Unavailable"
    start_response(status, [("Content-Type", "text/plain; charset=utf-8")])
    return [f"{trouble or 'ok'}\n".encode()]


def _server_class(host: str) -> type[ThreadingWSGIServer]:
    """Return a server of the address family of `host`; all addresses are IPv6's and IPv4's where there is IPv6."""
    dual = not host and socket.has_dualstack_ipv6()

    class Server(ThreadingWSGIServer):
        address_family = socket.AF_INET6 if dual or ":" in host else socket.AF_INET

        def server_bind(self) -> None:
            if dual:
                self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            super().server_bind()

    return Server


class _QuietHandler(WSGIRequestHandler):
    """Probes come every few seconds; their lines would bury the others."""

    def log_message(self, *_: object) -> None:
        """Log nothing."""
