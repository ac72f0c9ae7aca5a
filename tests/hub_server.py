"""A small local server that speaks the few calls of the hub that publishing and reading need."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "1" * 40


class Hub:
    """Repositories by kind and name, and the tokens that came with requests."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.repos: dict[tuple[str, str], dict[str, bytes]] = {}
        self.private: dict[tuple[str, str], bool] = {}
        self.tokens: list[tuple[str, str | None]] = []


@contextmanager
def hub_server() -> Iterator[Hub]:
    """A hub at an address of this machine, for the duration of the block."""

    class Handler(_Handler):
        pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Handler.hub = hub = Hub(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, *_: Any) -> None:
        pass

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self._note()
        if self.path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        if self.headers.get("Authorization") != "Bearer secret":
            return self._json({"error": "Invalid username or password."}, 401)
        if self.path == "/api/repos/create":
            wanted = json.loads(body)
            kind = wanted.get("type") or "model"
            name = "/".join(filter(None, (wanted.get("organization"), wanted["name"])))
            self.hub.repos.setdefault((kind, name), {})
            private = wanted.get("private") or wanted.get("visibility") == "private"
            self.hub.private[kind, name] = bool(private)
            part = "datasets/" if kind == "dataset" else ""
            return self._json({"url": f"{self.hub.address}/{part}{name}"})
        _, _, kinds, *rest = self.path.split("/")
        name, action = "/".join(rest[:2]), rest[2]
        if action == "preupload":
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            return self._json({"files": files})
        assert action == "commit"
        files = self.hub.repos[kinds.removesuffix("s"), name]
        for line in body.decode().splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
        return self._json(
            {"commitUrl": f"{self.hub.address}/{name}/commit/{COMMIT}", "commitOid": COMMIT}
        )

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self._note()
        path = self.path.split("?")[0]
        if match := re.match(r"/api/(dataset|model)s/([^/]+/[^/]+)(/tree|/revision)?", path):
            files = self.hub.repos.get((match[1], match[2]))
            if files is None:
                return self._json({"error": "no"}, 404, {"X-Error-Code": "RepoNotFound"})
            if match[3] == "/tree":
                return self._json(
                    [
                        {"type": "file", "path": name, "size": len(content), "oid": "0" * 40}
                        for name, content in files.items()
                    ]
                )
            siblings = [{"rfilename": name} for name in files]
            return self._json({"id": match[2], "sha": COMMIT, "siblings": siblings, "tags": []})
        match = re.match(r"/(datasets/)?([^/]+/[^/]+)/resolve/[^/]+/(.+)", path)
        assert match, path
        content = self.hub.repos["dataset" if match[1] else "model", match[2]][match[3]]
        etag = hashlib.sha1(content).hexdigest()
        return self._send(content, 200, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT})

    def _note(self) -> None:
        self.hub.tokens.append((self.command, self.headers.get("Authorization")))

    def _json(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self._send(json.dumps(value).encode(), status, headers or {})

    def _send(self, content: bytes, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
