"""The stand-in of the hub with its writing half: repositories are made, files arrive by LFS or within a commit.

with pushable(tmp_path / "hub", monkeypatch) as hub:
    huggingface_hub.HfApi().upload_folder(repo_id="user/name", folder_path=folder)
"""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import hub as reading
import pytest

TOKEN = "hf_a_token_of_the_test"


@contextlib.contextmanager
def pushable(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[reading.Hub]:
    """A hub that takes what comes with the token `TOKEN`, and refuses what comes without."""
    monkeypatch.setattr(reading, "_Handler", _Writer)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with reading.stand_in(folder, monkeypatch) as hub:
        yield hub


class _Writer(reading._Handler):
    """Requests that write; others go to the reading half."""

    def do_PUT(self) -> None:  # noqa: N802 - the name that http.server asks for
        self.hub.requests.append(f"PUT {self.path}")
        content = self.rfile.read(int(self.headers["Content-Length"]))
        _blob(self.hub, self.path.rpartition("/")[2]).write_bytes(content)
        self._json({})

    def do_POST(self) -> None:  # noqa: N802
        path = unquote(urlsplit(self.path).path)
        writes = ("/api/repos/create", "/api/validate-yaml")
        if path not in writes and not any(part in path for part in ("/preupload/", "/commit/", "/info/lfs/")):
            return self._answer()
        self.hub.requests.append(f"POST {path}")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if path != writes[1] and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._refuse("Unauthorized", 401)
        if path == writes[1]:
            return self._json({"errors": [], "warnings": []})
        if path == writes[0]:
            return self._create(json.loads(body))
        if "/info/lfs/" in path:
            return self._batch(json.loads(body))
        name = "/".join(path.split("/")[3:5])
        return self._preupload(json.loads(body)) if "/preupload/" in path else self._commit(name, body)

    def _create(self, asked: dict[str, Any]) -> None:
        name = f"{asked.get('organization') or 'user'}/{asked['name']}"
        if name in self.hub.gated:
            return self._refuse("You don't have the rights to create a model under this namespace", 403)
        (self.hub.folder / name).mkdir(parents=True, exist_ok=True)
        (self.hub.folder / name / ".private").write_text(json.dumps(asked.get("visibility") == "private"))
        return self._json({"url": f"{self.hub.address}/{name}", "id": name})

    def _preupload(self, asked: dict[str, Any]) -> None:
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                "shouldIgnore": False,
                "oid": None,
            }
            for file in asked["files"]
        ]
        self._json({"files": files})

    def _batch(self, asked: dict[str, Any]) -> None:
        objects = [
            {**item, "actions": {"upload": {"href": f"{self.hub.address}/lfs/{item['oid']}", "header": {}}}}
            for item in asked["objects"]
        ]
        self._json({"transfer": "basic", "objects": objects})

    def _commit(self, name: str, body: bytes) -> None:
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                self.hub.put(name, {value["path"]: base64.b64decode(value["content"])})
            elif line["key"] == "lfsFile":
                self.hub.put(name, {value["path"]: _blob(self.hub, value["oid"])})
        address = f"{self.hub.address}/{name}/commit/{reading.COMMIT}"
        self._json({"success": True, "commitOid": reading.COMMIT, "commitUrl": address})


def _blob(hub: reading.Hub, oid: str) -> Path:
    """Where an uploaded LFS object lies."""
    folder = hub.folder.parent / "lfs"
    folder.mkdir(exist_ok=True)
    return folder / oid
