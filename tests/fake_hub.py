"""The part of the HTTP interface of Hugging Face's hub that histo push and hf:// use, on this machine."""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import threading
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

TOKEN = "hf_test"
LFS_BYTES = 1000
"""Files of this size or more are uploaded as LFS objects."""


@dataclass
class Repo:
    """Branch → commit → path → content."""

    private: bool = False
    branches: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)

    def commit(self, branch: str, files: dict[str, bytes]) -> str:
        """Adds a commit to a branch, and returns its hash."""
        name = hashlib.sha1(repr((len(self.commits), branch, sorted(files))).encode()).hexdigest()
        self.commits[name] = files
        self.branches[branch] = name
        return name


class FakeHub(http.server.ThreadingHTTPServer):
    """Misbehaves as told.

    Attributes:
        repos: by name.
        lfs: the objects that have been uploaded, by sha256.
        refuse: the start of a path → the status of the answer.
        asked: method and path of every request.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos: dict[str, Repo] = {}
        self.lfs: dict[str, bytes] = {}
        self.refuse: dict[str, int] = {}
        self.asked: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    """A hub that runs in a thread."""
    with FakeHub() as hub:
        thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FakeHub

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except ConnectionError:
            self.close_connection = True

    def _any(self) -> None:
        hub = self.server
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        hub.asked.append(f"{self.command} {path}")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)) if self.command in ("POST", "PUT") else b""
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = self._chunked()
        for start, status in hub.refuse.items():
            if f"{self.command} {path}".startswith(start):
                self._answer(status, {"error": "as told"})
                return
        if path.startswith("/lfs/"):
            self._put(path.removeprefix("/lfs/"), body)
        elif path == "/api/whoami-v2":
            self._answer(*((200, {"name": "me", "type": "user"}) if self._allowed() else (401, {"error": "no token"})))
        elif path == "/api/validate-yaml":
            self._answer(200, {"errors": [], "warnings": []})
        elif path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization') or 'me'}/{asked['name']}"
            private = bool(asked.get("private")) or asked.get("visibility") == "private"
            hub.repos[name] = Repo(private)
            hub.repos[name].commit("main", {".gitattributes": b""})
            self._answer(200, {"url": f"{hub.url}/{name}", "id": "1"})
        else:
            self._of_a_repository(path, body)

    do_GET = do_HEAD = do_POST = do_PUT = _any  # noqa: N815  (the names that http.server calls)

    def _chunked(self) -> bytes:
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _allowed(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _put(self, oid: str, body: bytes) -> None:
        if hashlib.sha256(body).hexdigest() != oid:
            self._answer(400, {"error": "other bytes than announced"})
            return
        self.server.lfs[oid] = body
        self._answer(200, {})

    def _of_a_repository(self, path: str, body: bytes) -> None:
        """`/api/models/org/name/<what>/<revision>[/…]`, `/org/name/resolve/<revision>/<file>`, `/org/name.git/…`."""
        parts = path.removeprefix("/api/models/").strip("/").split("/")
        name = "/".join(parts[:2]).removesuffix(".git")
        repo = self.server.repos.get(name)
        if repo is None or (repo.private and not self._allowed()):
            self._answer(401 if not self._allowed() else 404, {"error": "Repository not found"}, "RepoNotFound")
            return
        what = parts[2] if len(parts) > 2 else "revision"
        if what == "info":
            self._lfs_batch(json.loads(body))
            return
        revision = parts[3] if len(parts) > 3 else "main"
        if what == "branch":
            repo.branches[revision] = repo.branches["main"]
            self._answer(200, {})
            return
        commit = repo.branches.get(revision, revision)
        if commit not in repo.commits:
            self._answer(404, {"error": f"Invalid rev id: {revision}"}, "RevisionNotFound")
            return
        files = repo.commits[commit]
        if what == "revision":
            self._answer(200, {"id": name, "sha": commit, "siblings": [{"rfilename": file} for file in files]})
        elif what == "tree":
            self._answer(200, [_entry(file, content) for file, content in files.items()])
        elif what == "preupload":
            sizes = {file["path"]: file["size"] for file in json.loads(body)["files"]}
            modes = {file: "lfs" if size >= LFS_BYTES else "regular" for file, size in sizes.items()}
            answer = [{"path": file, "uploadMode": mode, "shouldIgnore": False} for file, mode in modes.items()]
            self._answer(200, {"files": answer})
        elif what == "commit":
            self._commit(name, repo, revision, body)
        elif what == "resolve":
            self._resolve("/".join(parts[4:]), commit, files)
        else:
            self._answer(404, {"error": path})

    def _lfs_batch(self, asked: Any) -> None:
        answer = []
        for each in asked["objects"]:
            upload = {"actions": {"upload": {"href": f"{self.server.url}/lfs/{each['oid']}"}}}
            answer.append(each | ({} if each["oid"] in self.server.lfs else upload))
        self._answer(200, {"transfer": "basic", "objects": answer})

    def _commit(self, name: str, repo: Repo, branch: str, body: bytes) -> None:
        lines = [json.loads(line) for line in body.splitlines() if line]
        parent = lines[0]["value"].get("parentCommit")
        if parent not in (None, repo.branches[branch]):
            self._answer(412, {"error": "A commit has happened since. Please refresh and try again."})
            return
        files = dict(repo.commits[repo.branches[branch]])
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.lfs[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        commit = repo.commit(branch, files)
        url = f"{self.server.url}/{name}/commit/{commit}"
        self._answer(200, {"success": True, "commitOid": commit, "commitUrl": url, "hookOutput": ""})

    def _resolve(self, file: str, commit: str, files: dict[str, bytes]) -> None:
        if file not in files:
            self._answer(404, {"error": "Entry not found"}, "EntryNotFound")
            return
        content = files[file]
        headers = {"X-Repo-Commit": commit, "ETag": f'"{_etag(content)}"'}
        self._answer(200, content, headers=headers)

    def _answer(self, status: int, value: Any, code: str = "", headers: dict[str, str] | None = None) -> None:
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", "application/octet-stream" if isinstance(value, bytes) else "application/json")
        if code:
            self.send_header("X-Error-Code", code)
        for key, text in (headers or {}).items():
            self.send_header(key, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


def _etag(content: bytes) -> str:
    """The hub's own: sha256 of an LFS object, and git's sha1 of another file."""
    if len(content) >= LFS_BYTES:
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _entry(path: str, content: bytes) -> dict[str, Any]:
    entry = {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
    if len(content) >= LFS_BYTES:
        sha256 = hashlib.sha256(content).hexdigest()
        entry["lfs"] = {"oid": sha256, "size": len(content), "pointerSize": 134}
    return entry
