"""A web server of files on this machine: ranges, ETags, errors on purpose, slow answers, passwords."""

from __future__ import annotations

import base64
import hashlib
import re
import time
from pathlib import Path
from urllib.parse import unquote, urlsplit

from .local_server import Answering, LocalServer


class FileServer(LocalServer):
    """A server of a folder; -1 among its faults is a line that is cut.

    Attributes:
        user: `name:password` that is asked for.
        ranges: Whether a part of a file can be had.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self.user: str | None = None
        self.ranges = True
        self.etags: dict[bytes, str] = {}

    def bytes_of(self, ending: str) -> int:
        """Return how many bytes of files with an ending were asked for."""
        found = 0
        for method, path, asked in self.requests:
            if method == "GET" and path.endswith(ending):
                span = re.fullmatch(r"bytes=(\d+)-(\d+)", asked or "")
                size = (self.folder / path.lstrip("/")).stat().st_size
                found += size if span is None else min(int(span[2]) + 1, size) - int(span[1])
        return found


class _Handler(Answering):
    local: FileServer

    def answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        asked = self.headers.get("Range")
        fault = self.local.note(self.command, path, asked)
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


FileServer.handler = _Handler
