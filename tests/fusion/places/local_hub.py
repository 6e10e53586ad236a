"""A hub on this machine: what huggingface_hub asks for over HTTP, with ranges, redirects, errors and slow answers."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from .local_server import Answering, LocalServer

LARGE = 1024  # bytes from which a file is kept apart, as those in Git LFS are, and a redirect leads to it
REQUEST = tuple[str, str, str | None]  # method, path, range


@dataclass
class Repository:
    """States of a model by commit, and the branches and tags that name them."""

    states: dict[str, dict[str, bytes]] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    private: bool = False

    def add(self, files: Mapping[str, bytes], name: str) -> str:
        content = sorted((file, hashlib.sha256(data).hexdigest()) for file, data in files.items())
        commit = hashlib.sha1(json.dumps([content, len(self.states)]).encode()).hexdigest()
        self.states[commit] = dict(files)
        self.names[name] = commit
        return commit


class LocalHub(LocalServer):
    """Use as a context manager; `HF_ENDPOINT` is to be `url`.

    Attributes:
        tokens: Where not empty, what must be in the header of those that ask for a private repository.
    """

    def __init__(self) -> None:
        super().__init__()
        self.repositories: dict[str, Repository] = {}
        self.gated: set[str] = set()
        self.tokens: set[str] = set()
        self.stored: dict[str, bytes] = {}  # uploaded and in no commit yet, by sha256

    def put(self, repository: str, folder: Path | Mapping[str, bytes], name: str = "main") -> str:
        """Keep a folder as a state of a model, and return its commit."""
        if isinstance(folder, Path):
            found = {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
        else:
            found = dict(folder)
        return self.repositories.setdefault(repository, Repository()).add(found, name)

    def files(self, repository: str, name: str = "main") -> dict[str, bytes]:
        own = self.repositories[repository]
        return own.states[own.names[name]]

    def asked_for(self, file: str, method: str = "GET") -> list[REQUEST]:
        """Return the requests for a file's bytes."""
        return [one for one in self.requests if one[0] == method and one[1].endswith(file) and "/cdn/" in one[1]]


class _Handler(Answering):
    local: LocalHub

    def answer(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        self.body = self.rfile.read(length) if length else b""
        path = unquote(urlsplit(self.path).path)
        fault = self.local.note(self.command, path, self.headers.get("Range"))
        if isinstance(fault, float):
            time.sleep(fault)
        elif fault is not None:
            self.send(fault, b'{"error": "on purpose"}', {"Retry-After": "7"} if fault == 429 else {})
            return
        try:
            self.route(path)
        except KeyError:
            self.send(404, b'{"error": "Repository not found"}', {"X-Error-Code": "RepoNotFound"})
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def send(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def send_json(self, content: Any) -> None:
        self.send(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def send_bytes(self, content: bytes, headers: Mapping[str, str]) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if asked is None:
            self.send(200, content, {"Accept-Ranges": "bytes", **headers})
            return
        first, last = int(asked[1]), min(int(asked[2] or len(content)), len(content) - 1)
        place = f"bytes {first}-{last}/{len(content)}"
        self.send(206, content[first : last + 1], {"Content-Range": place, **headers})

    def route(self, path: str) -> None:
        if found := re.fullmatch(r"/cdn/([0-9a-f]{64})/.*", path):
            every = (
                data
                for own in self.local.repositories.values()
                for state in own.states.values()
                for data in state.values()
            )
            self.send_bytes(next(data for data in every if hashlib.sha256(data).hexdigest() == found[1]), {})
        elif found := re.fullmatch(r"/api/models/([\w.-]+/[\w.-]+)(/revision/(.+))?", path):
            self.model(found[1], found[3])
        elif found := re.fullmatch(r"/([\w.-]+/[\w.-]+)/resolve/([^/]+)/(.+)", path):
            self.file(found[1], found[2], found[3])
        else:
            self.push(path)

    def state(self, repository: str, revision: str | None) -> tuple[str, dict[str, bytes]] | None:
        own = self.local.repositories[repository]
        given = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if own.private and given not in self.local.tokens:
            raise KeyError(repository)
        if repository in self.local.gated:
            self.send(403, b'{"error": "gated"}', {"X-Error-Code": "GatedRepo", "X-Error-Message": "accept the terms"})
            return None
        commit = own.names.get(revision or "main", revision or "")
        if commit not in own.states:
            self.send(404, b'{"error": "Revision Not Found"}', {"X-Error-Code": "RevisionNotFound"})
            return None
        return commit, own.states[commit]

    def model(self, repository: str, revision: str | None) -> None:
        if (found := self.state(repository, revision)) is not None:
            siblings = [{"rfilename": name, "size": len(data), **_apart(data)} for name, data in found[1].items()]
            self.send_json({"id": repository, "sha": found[0], "siblings": siblings, "private": False, "tags": []})

    def file(self, repository: str, revision: str, name: str) -> None:
        found = self.state(repository, revision)
        if found is None:
            return
        commit, files = found
        if name not in files:
            self.send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
            return
        data = files[name]
        digest = hashlib.sha256(data).hexdigest()
        if len(data) < LARGE:
            etag = hashlib.sha1(data).hexdigest()
            self.send_bytes(data, {"ETag": f'"{etag}"', "X-Repo-Commit": commit})
            return
        # On another host: the library follows to its own hosts alone before it looks at the headers.
        place = f"{self.local.url.replace('127.0.0.1', 'localhost')}/cdn/{digest}/{name}"
        linked = {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(data)), "X-Repo-Commit": commit}
        self.send(302, b"", {"Location": place, "ETag": f'"{digest[:40]}"', **linked})

    def push(self, path: str) -> None:
        if path == "/api/whoami-v2":
            self.send_json({"type": "user", "name": "org", "orgs": [], "auth": {"type": "access_token"}})
        elif path == "/api/validate-yaml":
            assert json.loads(self.body)["content"].startswith("---")
            self.send_json({"errors": [], "warnings": []})
        elif path == "/api/repos/create":
            self.create()
        elif found := re.fullmatch(r"/api/models/([\w.-]+/[\w.-]+)/preupload/(.+)", path):
            asked = json.loads(self.body)["files"]
            modes = [{"path": one["path"], "uploadMode": "lfs" if one["size"] >= LARGE else "regular"} for one in asked]
            self.send_json({"files": [{**mode, "shouldIgnore": False} for mode in modes]})
        elif re.fullmatch(r"/([\w.-]+/[\w.-]+)\.git/info/lfs/objects/batch", path):
            self.send_json(
                {"transfer": "basic", "objects": [self.upload(one) for one in json.loads(self.body)["objects"]]}
            )
        elif found := re.fullmatch(r"/upload/([0-9a-f]{64})", path):
            assert hashlib.sha256(self.body).hexdigest() == found[1]
            self.local.stored[found[1]] = self.body
            self.send(200, b"")
        elif found := re.fullmatch(r"/api/models/([\w.-]+/[\w.-]+)/commit/(.+)", path):
            self.commit(found[1], found[2])
        else:
            self.send(404, b"{}")

    def create(self) -> None:
        asked = json.loads(self.body)
        name = "/".join(filter(None, (asked.get("organization") or "org", asked["name"])))
        if name in self.local.repositories:
            self.send(409, json.dumps({"error": "exists", "url": f"{self.local.url}/{name}"}).encode())
            return
        self.local.repositories[name] = Repository(
            private=bool(asked.get("private")) or asked.get("visibility") == "private"
        )
        self.local.put(name, {".gitattributes": b""})
        self.send_json({"url": f"{self.local.url}/{name}", "name": name})

    def upload(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        known = asked["oid"] in self.local.stored
        action = {"upload": {"href": f"{self.local.url}/upload/{asked['oid']}", "header": {}}}
        return {"oid": asked["oid"], "size": asked["size"], **({} if known else {"actions": action})}

    def commit(self, repository: str, branch: str) -> None:
        own = self.local.repositories[repository]
        files = dict(own.states[own.names[branch]])
        for line in self.body.decode().splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.local.stored[value["oid"]]
            elif entry["key"] == "deletedFile":
                del files[value["path"]]
        commit = own.add(files, branch)
        self.send_json(
            {"success": True, "commitOid": commit, "commitUrl": f"{self.local.url}/{repository}/commit/{commit}"}
        )


def _apart(data: bytes) -> dict[str, Any]:
    if len(data) < LARGE:
        return {}
    return {"lfs": {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}}


LocalHub.handler = _Handler
