"""A stand-in for the Hugging Face Hub: a local server that speaks its protocol for folders of the tests."""

import base64
import hashlib
import json
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import pytest
from huggingface_hub import constants

NOBODY = "http://127.0.0.1:9"
"""Where no server is."""
ROUTE = re.compile(
    r"/(api/models/|api/datasets/|datasets/)?(?P<repository>[^/]+/[^/]+)"
    r"(/(?P<what>revision|tree|resolve|preupload|commit|tag)/(?P<revision>[^/]+)(/(?P<file>.+))?)?"
)


@dataclass
class Hub:
    """What is published, by "organisation/name"; it may be changed while it is served."""

    commits: dict[str, dict[str, Path]] = field(default_factory=dict)
    """Of each repository, the folder with the files of each commit."""
    names: dict[str, dict[str, str]] = field(default_factory=dict)
    """Of each repository, the commits that branches and tags stand for."""
    gated: set[str] = field(default_factory=set)
    """Repositories whose files are for those who accepted terms."""
    breaks: set[str] = field(default_factory=set)
    """Files whose next answer ends in the middle."""
    asked: list[str] = field(default_factory=list)
    """Paths of all requests."""
    folder: Path | None = None
    """Where what is pushed is kept; without it nothing may be pushed."""
    private: dict[str, bool] = field(default_factory=dict)
    """Whether a repository that was made by pushing is private."""
    messages: list[str] = field(default_factory=list)
    """Of all commits that were pushed."""
    may_answer_writing: threading.Event = field(default_factory=threading.Event)
    """Set unless what is pushed is to wait."""
    url: str = ""

    def __post_init__(self) -> None:
        self.may_answer_writing.set()

    def publish(self, repository: str, folder: Path, *names: str) -> str:
        """Another commit of a repository, which "main" and the other names stand for from now on."""
        commits = self.commits.setdefault(repository, {})
        commit = hashlib.sha1(f"{repository} {len(commits)}".encode()).hexdigest()
        commits[commit] = folder
        self.names.setdefault(repository, {}).update(dict.fromkeys(("main", *names), commit))
        return commit

    def newest(self, repository: str) -> Path:
        """The folder with the files of a repository's newest commit."""
        return self.commits[repository][self.names[repository]["main"]]

    @property
    def environment(self) -> dict[str, str]:
        """With this, a process of its own reaches it and may write."""
        return {"HF_ENDPOINT": self.url, "HF_TOKEN": "hf_token"}


@contextmanager
def serving() -> Iterator[Hub]:
    """A Hub without anything in it, at its `url`."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer(with_body=False)

        def do_GET(self) -> None:
            self.answer(with_body=True)

        def do_POST(self) -> None:
            path = unquote(self.path.split("?")[0])
            hub.asked.append(path)
            content = self.rfile.read(int(self.headers["Content-Length"]))
            hub.may_answer_writing.wait(60)
            status, answer = _written(hub, path, [json.loads(line) for line in content.splitlines()])
            data = json.dumps(answer).encode()
            self.send_response(status)
            for name, value in {"Content-Length": len(data), "Content-Type": "application/json"}.items():
                self.send_header(name, str(value))
            self.end_headers()
            self.wfile.write(data)

        def answer(self, with_body: bool) -> None:
            path = unquote(self.path.split("?")[0])
            hub.asked.append(path)
            status, headers, data = _answer(hub, path)
            start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
            if start:
                status, headers["Content-Range"] = 206, f"bytes {start}-{len(data) - 1}/{len(data)}"
                data = data[start:]
            self.send_response(status)
            for name, value in {"Content-Length": str(len(data)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if with_body:
                name = path.rpartition("/")[2]
                self.wfile.write(data[: len(data) // 2] if name in hub.breaks else data)
                hub.breaks.discard(name)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        hub.url = f"http://127.0.0.1:{server.server_port}"
        yield hub
        server.shutdown()


def reached(monkeypatch: pytest.MonkeyPatch, url: str, cache: Path, offline: bool = False) -> None:
    """From now on the Hub is at this address, and what comes from it is kept in this folder."""
    monkeypatch.setattr(constants, "ENDPOINT", url)
    files = "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + files)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)


def _answer(hub: Hub, path: str) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body."""
    route = ROUTE.fullmatch(path)
    repository = route["repository"] if route else ""
    if repository not in hub.commits:
        return 401, {"X-Error-Code": "RepoNotFound"}, b""
    commit = hub.names[repository].get(route["revision"] or "main", route["revision"])
    folder = hub.commits[repository].get(commit)
    if folder is None:
        return 404, {"X-Error-Code": "RevisionNotFound"}, b""
    if route["what"] == "tree":
        files = sorted(file for file in folder.rglob("*") if file.is_file())
        facts = [
            {"path": file.relative_to(folder).as_posix(), "size": file.stat().st_size, "oid": _digest(file)}
            for file in files
        ]
        return 200, {}, json.dumps([{"type": "file", **fact} for fact in facts]).encode()
    if route["what"] != "resolve":
        return 200, {}, json.dumps({"id": repository, "sha": commit, "siblings": []}).encode()
    if repository in hub.gated:
        return 403, {"X-Error-Code": "GatedRepo"}, b""
    file = folder / route["file"]
    if not file.is_file():
        return 404, {"X-Error-Code": "EntryNotFound"}, b""
    return 200, {"ETag": f'"{_digest(file)}"', "X-Repo-Commit": commit}, file.read_bytes()


def _written(hub: Hub, path: str, lines: list[dict]) -> tuple[int, dict]:
    """Status and answer to what changes a repository; files come within the request, as small ones do."""
    if path == "/api/validate-yaml":
        return 200, {"errors": [], "warnings": []}
    if hub.folder is None:
        return 403, {"error": "This token may only read."}
    if path == "/api/repos/create":
        repository = f"{lines[0]['organization']}/{lines[0]['name']}"
        if repository not in hub.commits:
            hub.private[repository] = lines[0].get("visibility") == "private"
            (empty := hub.folder / "empty").mkdir(exist_ok=True)
            hub.publish(repository, empty)
        return 200, {"url": f"{hub.url}/{lines[0]['type']}s/{repository}"}
    route = ROUTE.fullmatch(path)
    assert route
    repository = route["repository"]
    names = hub.names[repository]
    commit = names.get(route["revision"], route["revision"])
    if route["what"] == "preupload":
        files = [
            {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
            for file in lines[0]["files"]
        ]
        return 200, {"files": files}
    if route["what"] == "tag":
        names[lines[0]["tag"]] = commit
        return 200, {}
    folder = hub.folder / f"{len(list(hub.folder.iterdir()))}"
    shutil.copytree(hub.commits[repository][commit], folder)
    for line in lines[1:]:
        file = folder / line["value"]["path"]
        if line["key"] == "deletedFile":
            file.unlink()
        else:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(base64.b64decode(line["value"]["content"]))
    hub.messages.append(lines[0]["value"]["summary"])
    new = hub.publish(repository, folder)
    return 200, {"commitUrl": f"{hub.url}/{repository}/commit/{new}", "commitOid": new}


def _digest(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()
