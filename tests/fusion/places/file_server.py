"""A web server of files on this machine: ranges, ETags, errors on purpose, slow answers, passwords."""

from __future__ import annotations

import base64
import hashlib
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit


class FileServer:
    """Use as a context manager.

    Attributes:
        requests: Method, path and range of all that came.
        faults: A pattern of `METHOD path` to statuses, seconds to wait, or -1 for a line that is cut.
        user: `name:password` that is asked for.
        ranges: Whether a part of a file can be had.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.requests: list[tuple[str, str, str | None]] = []
        self.faults: dict[str, list[int | float]] = {}
        self.user: str | None = None
        self.ranges = True
        self.etags: dict[bytes, str] = {}
        self.lock = threading.Lock()

    def __enter__(self) -> FileServer:
        outer = self

        class Handler(_Handler):
            local = outer

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02})
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def bytes_of(self, ending: str) -> int:
        """Return how many bytes of files with an ending were asked for."""
        found = 0
        for method, path, asked in self.requests:
            if method == "GET" and path.endswith(ending):
                span = re.fullmatch(r"bytes=(\d+)-(\d+)", asked or "")
                size = (self.folder / path.lstrip("/")).stat().st_size
                found += size if span is None else min(int(span[2]) + 1, size) - int(span[1])
        return found


class _Handler(BaseHTTPRequestHandler):
    local: FileServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        asked = self.headers.get("Range")
        with self.local.lock:
            self.local.requests.append((self.command, path, asked))
            fault = next(
                (f.pop(0) for p, f in self.local.faults.items() if f and re.search(p, f"{self.command} {path}")), None
            )
        if isinstance(fault, float):
            time.sleep(fault)
        elif fault is not None and fault > 0:
            return self.send(fault, b"on purpose", {})
        user = base64.b64encode((self.local.user or "").encode()).decode()
        if self.local.user and self.headers.get("Authorization") != f"Basic {user}":
            return self.send(401, b"who asks?", {"WWW-Authenticate": "Basic"})
        file = self.local.folder / path.lstrip("/")
        if not file.is_file():
            return self.send(404, b"none", {})
        content = file.read_bytes()
        etag = self.local.etags.get(content) or hashlib.sha1(content).hexdigest()
        self.local.etags[content] = etag
        headers = {"ETag": f'"{etag}"', "Accept-Ranges": "bytes"}
        span = re.fullmatch(r"bytes=(\d+)-(\d+)", asked or "") if self.local.ranges else None
        if span is not None:
            first, last = int(span[1]), min(int(span[2]), len(content) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            content = content[first : last + 1]
        return self.send(206 if span else 200, content, headers, cut=fault == -1)

    def send(self, status: int, body: bytes, headers: dict[str, str], *, cut: bool = False) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[: len(body) // 2] if cut else body)
        if cut:
            self.close_connection = True
