"""A model hub on 127.0.0.1 with what huggingface_hub and datasets ask of it: commits, files, gates, ranges.

Set HF_ENDPOINT to `Hub.url` before huggingface_hub is imported.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import parse_qs, unquote, urlsplit

REF = r"(refs/[^/]+/[^/]+|[^/]+)"  # refs/convert/parquet, main, a commit


@dataclass
class Repo:
    commits: dict[str, dict[str, bytes]] = field(
        default_factory=dict
    )  # sha -> the content of each path
    refs: dict[str, str] = field(default_factory=dict)  # branch or tag -> sha
    tokens: set[str] | None = None  # who may read the files; None: everybody


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    status: int
    sent: int  # bytes of the body


class Hub:
    """`with Hub() as hub: sha = hub.commit("owner/name", {"train.jsonl": b"…"})`"""

    def __init__(self):
        self.repos: dict[str, Repo] = {}
        self.log: list[Request] = []
        self.failing: tuple[int, str] | None = (
            None  # (status, X-Error-Message) that answers everything
        )
        self.cuts: dict[
            str, int
        ] = {}  # name of a file -> no byte beyond this one is sent, the connection closes

    def __enter__(self) -> Hub:
        self.server = ThreadingHTTPServer(
            ("127.0.0.1", 0), type("Bound", (Handler,), {"hub": self})
        )
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        Thread(
            target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
        ).start()
        return self

    def __exit__(self, *_) -> None:
        self.server.shutdown()
        self.server.server_close()

    def commit(
        self,
        name: str,
        files: dict[str, bytes | str],
        *,
        kind: str = "datasets",
        branch: str = "main",
        tokens: set[str] | None = None,
    ) -> str:
        """Puts a commit of these files, and no others, at the head of a branch; the repo is made when it is new."""
        content = {path: c.encode() if isinstance(c, str) else c for path, c in files.items()}
        repo = self.repos.setdefault(f"{kind}/{name}", Repo())
        sha = sha1(
            json.dumps([name, len(repo.commits), {p: sha1(c) for p, c in content.items()}]).encode()
        )
        repo.commits[sha], repo.refs[branch], repo.tokens = content, sha, tokens
        return sha

    def sent(self, ending: str = "") -> int:
        """Bytes of the files of this ending that were sent."""
        return sum(r.sent for r in self.log if "/resolve/" in r.path and r.path.endswith(ending))


def sha1(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


class Refusal(Exception):
    """(status, X-Error-Code)"""


class Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        path, headers = unquote(urlsplit(self.path).path), {}
        if self.hub.failing:
            return self.answer(self.hub.failing[0], b"{}", {"X-Error-Message": self.hub.failing[1]})
        try:
            if found := re.fullmatch(
                rf"/api/(datasets|models)/([^/]+/[^/]+)(?:/([\w-]+)(?:/{REF}(?:/(.+))?)?)?", path
            ):
                kind, name, what, revision, inside = found.groups()
                content = self.api(f"{kind}/{name}", what, revision or "main", inside or "")
                return self.answer(
                    200, json.dumps(content).encode(), {"Content-Type": "application/json"}
                )
            if found := re.fullmatch(rf"/(datasets/)?([^/]+/[^/]+)/resolve/{REF}/(.+)", path):
                kind, name, revision, file = found.groups()
                repo, sha = self.find(f"{(kind or 'models/').rstrip('/')}/{name}", revision)
                self.may_read(repo)
                headers["X-Repo-Commit"] = sha
                if file not in repo.commits[sha]:
                    raise Refusal(404, "EntryNotFound")
                return self.file(file, repo.commits[sha][file], headers)
            raise Refusal(404, "NotFound")
        except Refusal as refusal:
            status, code = refusal.args
            self.answer(status, b'{"error": "refused"}', headers | {"X-Error-Code": code})

    do_HEAD = do_POST = do_GET

    def find(self, key: str, revision: str) -> tuple[Repo, str]:
        if key not in self.hub.repos:  # who shows no token is not told whether it is there
            raise Refusal(404 if self.token() else 401, "RepoNotFound")
        repo = self.hub.repos[key]
        sha = repo.refs.get(revision, revision)
        if sha not in repo.commits:
            raise Refusal(404, "RevisionNotFound")
        return repo, sha

    def token(self) -> str:
        return self.headers.get("Authorization", "").removeprefix("Bearer ")

    def may_read(self, repo: Repo) -> None:
        if repo.tokens is not None and self.token() not in repo.tokens:
            raise Refusal(403 if self.token() else 401, "GatedRepo")

    def api(self, key: str, what: str | None, revision: str, inside: str) -> object:
        asked = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        repo, sha = self.find(key, revision)
        files = repo.commits[sha]
        if what in ("tree", "paths-info", "auth-check"):
            self.may_read(repo)
        if what == "auth-check":
            return {}
        entries = [
            {"type": "file", "path": p, "size": len(c), "oid": sha1(c)} for p, c in files.items()
        ]
        folders = {p[: at.start()] for p in files for at in re.finditer("/", p)}
        entries += [
            {"type": "directory", "path": p, "size": 0, "oid": sha1(p.encode())}
            for p in sorted(folders)
        ]
        if what == "paths-info":
            return [e for e in entries if e["path"] in parse_qs(asked.decode())["paths"]]
        if what == "tree":
            if inside and inside not in folders:
                raise Refusal(404, "EntryNotFound")
            deep = (
                parse_qs(urlsplit(self.path).query).get("recursive", ["false"])[0].lower() == "true"
            )
            below = [e for e in entries if e["path"].startswith(f"{inside}/" if inside else "")]
            return [
                e for e in below if deep or "/" not in e["path"][len(inside) + 1 if inside else 0 :]
            ]
        return {
            "id": key.partition("/")[2],
            "sha": sha,
            "private": False,
            "gated": repo.tokens is not None and "auto",
            "tags": [],
            "downloads": 0,
            "siblings": [{"rfilename": p} for p in files],
        }

    def file(self, name: str, content: bytes, headers: dict[str, str]) -> None:
        headers |= {"ETag": f'"{sha1(content)}"', "Accept-Ranges": "bytes"}
        start, end, status = 0, len(content), 200
        if wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            start, end, status = int(wanted[1]), min(int(wanted[2] or end) + 1, end), 206
            if start >= len(content):
                return self.answer(416, b"", headers | {"Content-Range": f"bytes */{len(content)}"})
            headers |= {"Content-Range": f"bytes {start}-{end - 1}/{len(content)}"}
        self.answer(status, content[start:end], headers, self.hub.cuts.get(name, end) - start)

    def answer(
        self, status: int, body: bytes, headers: dict[str, str], most: int | None = None
    ) -> None:
        """`most`: bytes of the body after which the connection is closed."""
        part = b"" if self.command == "HEAD" else body if most is None else body[: max(0, most)]
        self.hub.log.append(
            Request(self.command, unquote(urlsplit(self.path).path), status, len(part))
        )
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(part)
        self.close_connection |= self.command != "HEAD" and len(part) < len(body)

    def log_message(self, *_) -> None:
        pass
