"""A stand-in of the hub on 127.0.0.1: repositories are folders, served as huggingface_hub asks for them.

with stand_in(tmp_path / "hub", monkeypatch) as hub:
    hub.put("user/sae", {"cfg.json": b"{}"})
    huggingface_hub.snapshot_download("user/sae")
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
import yaml

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """The repositories, and what was asked for.

    Args:
        folder: holds `user/name/...`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.requests: list[str] = []
        """Method and path of every request, in order."""
        self.cut: set[str] = set()
        """Paths in repositories of which only the first half arrives."""
        self.gated: set[str] = set()
        """Repositories that need a token."""
        self.address = ""

    def put(self, repository: str, files: Mapping[str, bytes | Path]) -> None:
        """Add files to a repository: path in it -> content, or the file that has it."""
        for name, content in files.items():
            path = self.folder / repository / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.read_bytes() if isinstance(content, Path) else content)

    def put_folder(self, repository: str, folder: Path, at: str = "") -> None:
        """Add every file below a folder to a repository, below the path `at`."""
        files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        self.put(repository, {str(Path(at) / path.relative_to(folder)): path for path in files})

    def downloads(self) -> list[str]:
        """Paths in repositories whose content was sent, each once."""
        sent = (
            line.split("/resolve/", 1)[1] for line in self.requests if line.startswith("GET") and "/resolve/" in line
        )
        return list(dict.fromkeys(path.split("/", 1)[1] for path in sent))


@contextlib.contextmanager
def stand_in(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub whose repositories live in a folder; huggingface_hub speaks to it, with an empty cache."""
    from huggingface_hub import constants

    hub = Hub(folder / "repositories")
    hub.folder.mkdir(parents=True)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    for name, value in {
        "ENDPOINT": hub.address,
        "HUGGINGFACE_CO_URL_TEMPLATE": f"{hub.address}/{{repo_id}}/resolve/{{revision}}/{{filename}}",
        "HF_HUB_CACHE": str(folder / "cache"),
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
    }.items():
        monkeypatch.setattr(constants, name, value)
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: Any) -> None:
        del format, args

    def _answer(self) -> None:
        url = urlsplit(self.path)
        path = unquote(url.path)
        self.hub.requests.append(f"{self.command} {path}")
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length).decode()
        parts = path.strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            return self._repository(parts[2:], parse_qs(url.query), body)
        if len(parts) > 4 and parts[2] == "resolve":
            return self._file("/".join(parts[:2]), "/".join(parts[4:]))
        return self._refuse("EntryNotFound", 404)

    def _repository(self, parts: list[str], query: dict[str, list[str]], body: str) -> None:
        name, what, inside = "/".join(parts[:2]), parts[2:3], "/".join(parts[4:])
        folder = self.hub.folder / name
        if not folder.is_dir():
            return self._refuse("RepoNotFound", 404)
        if self._locked(name):
            return self._refuse("GatedRepo", 401)
        if what == ["tree"]:
            if not (folder / inside).is_dir():
                return self._refuse("EntryNotFound", 404)
            paths = (folder / inside).rglob("*") if query.get("recursive") == ["true"] else (folder / inside).iterdir()
            return self._json([self._entry(folder, path) for path in sorted(paths)])
        if what == ["paths-info"]:
            asked = json.loads(body)["paths"] if body.startswith("{") else parse_qs(body)["paths"]
            return self._json([self._entry(folder, folder / path) for path in asked if (folder / path).exists()])
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        siblings = [{"rfilename": str(path.relative_to(folder))} for path in files]
        info = {"id": name, "modelId": name, "sha": COMMIT, "siblings": siblings, "private": False}
        card = folder / "README.md"
        front = card.read_text().split("---") if card.is_file() else []
        if len(front) > 2:
            info["cardData"] = yaml.safe_load(front[1])
        return self._json(info)

    def _entry(self, folder: Path, path: Path) -> dict[str, Any]:
        kind = {"path": str(path.relative_to(folder)), "oid": COMMIT}
        return {**kind, "type": "directory"} if path.is_dir() else {**kind, "type": "file", "size": path.stat().st_size}

    def _file(self, name: str, inside: str) -> None:
        path = self.hub.folder / name / inside
        if not path.is_file():
            return self._refuse("EntryNotFound" if (self.hub.folder / name).is_dir() else "RepoNotFound", 404)
        if self._locked(name):
            return self._refuse("GatedRepo", 401)
        content = path.read_bytes()
        begin = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").split("-")[0])
        self.send_response(206 if begin else 200)
        self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(content) - begin))
        self.end_headers()
        if self.command == "HEAD":
            return
        end = begin + (len(content) - begin) // 2 if inside in self.hub.cut else len(content)
        self.wfile.write(content[begin:end])
        if inside in self.hub.cut:
            self.wfile.flush()
            self.close_connection = True

    def _locked(self, name: str) -> bool:
        return name in self.hub.gated and not self.headers.get("Authorization")

    def _json(self, value: Any) -> None:
        content = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _refuse(self, code: str, status: int) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", code)
        self.send_header("Content-Length", "0")
        self.end_headers()
