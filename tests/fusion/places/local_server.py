"""What servers on this machine have in common: a thread that answers, a note of what was asked, errors on purpose."""

from __future__ import annotations

import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar, Self


class Answering(BaseHTTPRequestHandler):
    """A handler whose `answer` answers every request."""

    local: Any
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.answer()

    def do_HEAD(self) -> None:
        self.answer()

    def do_POST(self) -> None:
        self.answer()

    def do_PUT(self) -> None:
        self.answer()

    def answer(self) -> None:
        raise NotImplementedError


class LocalServer:
    """Use as a context manager.

    Attributes:
        handler: What answers; its `local` is this.
        requests: Method, path and range of all that came.
        faults: A pattern of `METHOD path` to what comes before the answer, one a request: statuses, or seconds to wait.
    """

    handler: ClassVar[type[Answering]]

    def __init__(self) -> None:
        self.requests: list[tuple[str, str, str | None]] = []
        self.faults: dict[str, list[int | float]] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (self.handler,), {"local": self}))
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02})
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def note(self, method: str, path: str, span: str | None) -> int | float | None:
        """Note a request, and return the fault that is meant for it."""
        with self._lock:
            self.requests.append((method, path, span))
            for pattern, faults in self.faults.items():
                if faults and re.search(pattern, f"{method} {path}"):
                    return faults.pop(0)
        return None
