"""The server's HTTP page for people and monitors: /metrics, /healthz, /readyz, and teachers, endpoints and kept
labels at / and in JSON.
"""

from __future__ import annotations

import html
import json
import logging
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from teacherfarm.label_store.label_store import LayerStats
from teacherfarm.protos.messages import TeacherSummary
from teacherfarm.teacher_server.backends.backend import EndpointState
from teacherfarm.teacher_server.metrics import Metrics

log = logging.getLogger(__name__)

VISIT_S = 10.0
"""How long a visitor may take to say what it wants."""
MOST_VISITORS = 32
"""At once."""
PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>teacherfarm</title>
<style>body{{font:16px/1.5 system-ui,sans-serif;max-width:52rem;margin:3rem auto;padding:0 1rem;color:#1c2430}}
table{{border-collapse:collapse;width:100%}}
td,th{{text-align:left;padding:.45rem .7rem;border-bottom:1px solid #d9dee5}}
code{{background:#f1f3f6;padding:.1rem .3rem;border-radius:.2rem}}.ready,.serving{{color:#12733a}}
.loading,.waiting,.connecting{{color:#8a5b00}}.failed,.unreachable,.refused{{color:#b3261e}}</style>
<h1>teacherfarm</h1><p>{state}</p>
<table><tr><th>Teacher</th><th>State</th><th>Digest</th></tr>{rows}</table>{endpoints}
<p>{addresses}</p><p><a href="/metrics">/metrics</a> &middot; <a href="/healthz">/healthz</a> &middot;
<a href="/readyz">/readyz</a> &middot; <a href="/teachers">/teachers</a> &middot;
<a href="/endpoints">/endpoints</a> &middot; <a href="/store">/store</a></p></html>
"""


class _Pages(ThreadingHTTPServer):
    """A thread for each visitor, up to a number: the page may be open to a whole network."""

    daemon_threads = True

    def __init__(self, *arguments: Any) -> None:
        self._room = threading.BoundedSemaphore(MOST_VISITORS)
        super().__init__(*arguments)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Hang up on a visitor too many."""
        if self._room.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve one visitor, in its thread."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A visitor that hangs up in the middle is no news; anything else is told in full."""
        if not isinstance(sys.exception(), OSError):
            log.exception("the status page failed for %s", client_address)


class StatusFrontend:
    """Serves on ``address`` in a thread of its own; ``address`` is real after :meth:`start`.

    ``readiness`` gives None when ready, else one sentence on what is missing.
    """

    def __init__(
        self,
        address: str,
        *,
        metrics: Metrics,
        teachers: Callable[[], list[TeacherSummary]],
        readiness: Callable[[], str | None],
        addresses: Callable[[], list[str]],
        endpoints: Callable[[], Sequence[EndpointState]] = tuple,
        store: Callable[[], Sequence[LayerStats]] = tuple,
    ) -> None:
        self.address = address
        self._metrics = metrics
        self._teachers = teachers
        self._readiness = readiness
        self._addresses = addresses
        self._endpoints = endpoints
        self._store = store
        self._server: ThreadingHTTPServer | None = None

    def start(self) -> None:
        """Bind; raises OSError with the address when it is taken."""
        host, _, port = self.address.rpartition(":")
        frontend = self

        class Handler(BaseHTTPRequestHandler):
            timeout = VISIT_S

            def do_GET(self) -> None:
                status, kind, body = frontend._answer(self.path)
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *arguments: object) -> None:
                """Nothing: a monitor asks every few seconds."""

        try:
            self._server = _Pages((host.strip("[]"), int(port)), Handler)
        except OSError as error:
            raise OSError(f"cannot listen for HTTP on {self.address}: {error}") from error
        self.address = f"{host}:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, name="status page", daemon=True).start()

    def close(self) -> None:
        """Stop serving."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def _answer(self, path: str) -> tuple[int, str, bytes]:
        missing = self._readiness()
        match path.partition("?")[0]:
            case "/metrics":
                return 200, "text/plain; version=0.0.4; charset=utf-8", self._metrics.page()
            case "/healthz":
                return 200, "text/plain", b"alive\n"
            case "/readyz":
                if missing is not None:
                    return 503, "text/plain", f"{missing}\n".encode()
                # Answers go on without kept labels: ready, but not as it should be.
                without = [f"ready, but without kept labels in {s.layer}: {s.why}\n" for s in self._store() if s.why]
                return 200, "text/plain", ("".join(without) or "ready\n").encode()
            case "/teachers":
                return (
                    200,
                    "application/json",
                    json.dumps([asdict(t) for t in self._teachers()], indent=2).encode(),
                )
            case "/endpoints":
                return (
                    200,
                    "application/json",
                    json.dumps([asdict(e) for e in self._endpoints()], indent=2).encode(),
                )
            case "/store":
                return (
                    200,
                    "application/json",
                    json.dumps([asdict(layer) for layer in self._store()], indent=2).encode(),
                )
            case "/":
                return 200, "text/html; charset=utf-8", self._page(missing).encode()
            case _:
                return (
                    404,
                    "text/plain",
                    b"not here: try /, /metrics, /healthz, /readyz, /teachers, /endpoints or /store\n",
                )

    def _page(self, missing: str | None) -> str:
        rows = "".join(
            f"<tr><td>{html.escape(t.name)}</td><td class={t.state}>{t.state}</td>"
            f"<td><code>{t.teacher_digest[:16]}</code></td></tr>"
            for t in self._teachers()
        )
        addresses = " &middot; ".join(f"<code>{html.escape(address)}</code>" for address in self._addresses())
        endpoints = "".join(
            f"<tr><td>{html.escape(e.address)}</td><td>{html.escape(e.teacher)}</td>"
            f"<td class={e.state}>{e.state}</td><td>{html.escape(e.why)}</td></tr>"
            for e in sorted(self._endpoints(), key=lambda e: (e.teacher, e.address))
        )
        if endpoints:
            heads = "<tr><th>Triton endpoint</th><th>Teacher</th><th>State</th><th>Why</th></tr>"
            endpoints = f"<table>{heads}{endpoints}</table>"
        layers = "".join(
            f"<tr><td>{html.escape(s.layer)}</td><td>{s.kept_labels if s.kept_labels >= 0 else '?'}</td>"
            f"<td class={'failed' if s.why else 'ready'}>{html.escape(s.why or 'in use')}</td></tr>"
            for s in self._store()
        )
        if layers:
            heads = "<tr><th>Kept labels in</th><th>Labels</th><th>State</th></tr>"
            endpoints += f"<table>{heads}{layers}</table>"
        return PAGE.format(state=html.escape(missing or "Ready."), rows=rows, addresses=addresses, endpoints=endpoints)
