"""A Hub on this machine: a real HTTP server with the requests that huggingface_hub sends, and
faults on demand.

Large files go through LFS as the client sends them when HF_HUB_DISABLE_XET is set; Xet has a
protocol of its own.
"""

import base64
import hashlib
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

OWNER, TOKEN = "someone", "hf_" + "aB3" * 12
READER_TOKEN = "hf_" + "cD4" * 12

LARGE_SUFFIXES = (".safetensors", ".bin", ".parquet")


@dataclass(frozen=True)
class Blob:
    """A file of a commit."""

    content: bytes
    large: bool

    @property
    def oid(self) -> str:
        """What the Hub names it by: SHA-256 for large files, git's SHA-1 for the others."""
        if self.large:
            return hashlib.sha256(self.content).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(self.content) + self.content).hexdigest()


@dataclass
class Commit:
    oid: str
    message: str
    files: dict[str, Blob]


@dataclass
class Repository:
    private: bool
    commits: dict[str, Commit] = field(default_factory=dict)
    references: dict[str, str] = field(default_factory=dict)
    pull_requests: int = 0

    def commit(self, message: str, files: dict[str, Blob]) -> Commit:
        oid = hashlib.sha1(f"{len(self.commits)} {message} {sorted(files)}".encode()).hexdigest()
        self.commits[oid] = Commit(oid, message, files)
        return self.commits[oid]

    def find(self, revision: str) -> Commit | None:
        return self.commits.get(self.references.get(revision, revision))


@dataclass
class Fault:
    """What goes wrong on a route: an error status, a cut connection, or waiting first.

    Attributes:
        route: name of the route, as in `_ROUTES`.
        status: status to answer with, instead of doing what is asked.
        headers: headers of that answer.
        cut: `request` closes the connection in the middle of what the client sends, `answer` does
            what is asked and closes before answering.
        delay: seconds to wait first.
        times: requests that meet the fault.
    """

    route: str
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    cut: str | None = None
    delay: float = 0.0
    times: int = 1_000_000


class RefusedError(Exception):
    """An answer other than 200."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.code, self.headers = status, code, headers or {}


class HubServer(ThreadingHTTPServer):
    """The state of the Hub, and what clients asked for.

    Attributes:
        large_files: send large files through LFS, as the Hub does; otherwise everything travels
            inside the commit.
        requests: (route, method, path) of everything asked for, in order.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self, *, large_files: bool = True) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.large_files = large_files
        self.repositories: dict[str, Repository] = {}
        self.stored: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self.requests: list[tuple[str, str, str]] = []
        self.lock = threading.RLock()
        self.url = f"http://127.0.0.1:{self.server_port}"

    def fail(self, route: str, **fault: Any) -> None:
        """Let a route fail, in place of earlier faults."""
        self.faults = [Fault(route, **fault)]

    def heal(self) -> None:
        """Let everything work again."""
        self.faults = []

    def take_fault(self, route: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.route == route and fault.times > 0:
                    fault.times -= 1
                    return fault
        return None

    def routes(self) -> list[str]:
        """Routes asked for, in order."""
        return [route for route, _, _ in self.requests]

    def history(self, repo_id: str) -> list[Commit]:
        """Commits of a repository after its creation."""
        return list(self.repositories[repo_id].commits.values())[1:]

    def files(self, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        """Contents of a revision, without the file that every repository is created with."""
        commit = self.repositories[repo_id].find(revision)
        assert commit is not None
        return {
            name: blob.content for name, blob in commit.files.items() if name != ".gitattributes"
        }


@contextmanager
def running_hub(**options: Any) -> Iterator[HubServer]:
    """Serve a new, empty Hub."""
    server = HubServer(**options)
    thread = threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
    )
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Handler(BaseHTTPRequestHandler):
    """One connection of a client."""

    protocol_version = "HTTP/1.1"
    server: HubServer

    def log_message(self, format: str, *args: Any) -> None:
        """Stay quiet: requests are recorded instead."""

    def serve(self) -> None:
        """Answer a request, or do what the route's fault says."""
        address = urlsplit(self.path)
        path, self.query = (
            address.path,
            {key: values[0] for key, values in parse_qs(address.query).items()},
        )
        command = "GET" if self.command == "HEAD" else self.command
        route, answer, groups = next(
            (route, answer, match.groups())
            for route, method, pattern, answer in _ROUTES
            if method == command and (match := pattern.fullmatch(path))
        )
        self.server.requests.append((route, self.command, self.path))
        fault = self.server.take_fault(route)
        if fault is not None:
            time.sleep(fault.delay)
            if fault.cut == "request":
                self.rfile.read(int(self.headers.get("Content-Length") or 0) // 2)
                return self.hang_up()
        body = self.read_body()
        try:
            if fault is not None and fault.status is not None:
                raise RefusedError(
                    fault.status, f"fault {fault.status} of the test", headers=fault.headers
                )
            with self.server.lock:
                status, headers, content = answer(self, body, *map(unquote, groups))
        except RefusedError as refusal:
            status, headers = refusal.status, {"X-Error-Message": str(refusal), **refusal.headers}
            if refusal.code:
                headers["X-Error-Code"] = refusal.code
            content = json.dumps(
                {"error": str(refusal), "url": f"{self.server.url}/{OWNER}/taken"}
            ).encode()
        if fault is not None and fault.cut == "answer":
            return self.hang_up()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
        return None

    do_GET = do_HEAD = do_POST = do_PUT = serve  # noqa: N815 - names of http.server

    def hang_up(self) -> None:
        self.close_connection = True
        self.connection.close()

    def read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def user(self) -> str | None:
        """Whose token the request carries."""
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token not in ("", TOKEN, READER_TOKEN):
            raise RefusedError(401, "Invalid credentials in Authorization header")
        return {TOKEN: OWNER, READER_TOKEN: "reader"}.get(token)

    def repository(self, repo_id: str, *, write: bool = False) -> Repository:
        user, found = self.user(), self.server.repositories.get(repo_id)
        if found is None or (found.private and user != repo_id.split("/")[0]):
            raise RefusedError(404 if user else 401, "Repository not found", "RepoNotFound")
        if write and user is None:
            raise RefusedError(401, "Invalid username or password.")
        # Anyone who is logged in may open a pull request.
        if write and user != repo_id.split("/")[0] and "create_pr" not in self.query:
            raise RefusedError(403, f"You don't have the rights to write to {repo_id}")
        return found

    def commit_at(self, repo_id: str, revision: str) -> Commit:
        commit = self.repository(repo_id).find(revision)
        if commit is None:
            raise RefusedError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit


Answer = tuple[int, dict[str, str], bytes]


def as_json(values: Any) -> Answer:
    return 200, {"Content-Type": "application/json"}, json.dumps(values).encode()


def whoami(request: Handler, body: bytes) -> Answer:
    user = request.user()
    if user is None:
        raise RefusedError(401, "Invalid username or password.")
    return as_json({"type": "user", "name": user, "orgs": [], "auth": {"type": "access_token"}})


def create(request: Handler, body: bytes) -> Answer:
    asked, user = json.loads(body), request.user()
    if user is None:
        raise RefusedError(401, "Invalid username or password.")
    namespace = asked.get("organization") or user
    if namespace != user:
        raise RefusedError(
            403, f"You don't have the rights to create a model under the namespace {namespace!r}"
        )
    repo_id = f"{namespace}/{asked['name']}"
    url = f"{request.server.url}/{repo_id}"
    if repo_id in request.server.repositories:
        return (
            409,
            {},
            json.dumps({"error": "You already created this model repo", "url": url}).encode(),
        )
    repository = Repository(private=asked.get("visibility") == "private")
    first = repository.commit(
        "initial commit", {".gitattributes": Blob(b"*.safetensors filter=lfs\n", False)}
    )
    repository.references["main"] = first.oid
    request.server.repositories[repo_id] = repository
    return as_json({"url": url, "name": repo_id})


def validate(request: Handler, body: bytes) -> Answer:
    content = json.loads(body)["content"]
    front = re.match(r"---\n(.*?)\n---", content, re.DOTALL)
    try:
        metadata = yaml.safe_load(front.group(1)) if front else None
    except yaml.YAMLError as error:
        return 400, {}, json.dumps({"errors": [{"message": str(error)}], "warnings": []}).encode()
    warnings = (
        []
        if isinstance(metadata, dict)
        else [{"message": "empty or missing yaml metadata in repo card"}]
    )
    return as_json({"errors": [], "warnings": warnings})


def preupload(request: Handler, body: bytes, repo_id: str, revision: str) -> Answer:
    request.repository(repo_id, write=True)
    files = request.commit_at(repo_id, revision).files
    answers = []
    for file in json.loads(body)["files"]:
        large = request.server.large_files and file["path"].endswith(LARGE_SUFFIXES)
        answer = {
            "path": file["path"],
            "uploadMode": "lfs" if large else "regular",
            "shouldIgnore": False,
        }
        if file["path"] in files:
            answer["oid"] = files[file["path"]].oid
        answers.append(answer)
    return as_json({"files": answers})


def lfs_batch(request: Handler, body: bytes, repo_id: str) -> Answer:
    asked = json.loads(body)
    # Without a branch it is for a pull request, which anyone may open.
    request.repository(repo_id, write="ref" in asked)
    objects = []
    for file in asked["objects"]:
        answer: dict[str, Any] = {"oid": file["oid"], "size": file["size"]}
        if file["oid"] not in request.server.stored:
            answer["actions"] = {"upload": {"href": f"{request.server.url}/storage/{file['oid']}"}}
        objects.append(answer)
    return as_json({"transfer": "basic", "objects": objects})


def store(request: Handler, body: bytes, oid: str) -> Answer:
    if hashlib.sha256(body).hexdigest() != oid:
        raise RefusedError(400, "the content does not have the promised hash")
    request.server.stored[oid] = body
    return 200, {}, b""


def commit(request: Handler, body: bytes, repo_id: str, revision: str) -> Answer:
    repository = request.repository(repo_id, write=True)
    parent = request.commit_at(repo_id, revision)
    files, message = dict(parent.files), ""
    for line in body.splitlines():
        item = json.loads(line)
        value = item["value"]
        if item["key"] == "header":
            message = value["summary"]
            if value.get("parentCommit", parent.oid) != parent.oid:
                raise RefusedError(
                    412, "A commit has happened since. Please refresh and try again."
                )
        elif item["key"] == "file":
            files[value["path"]] = Blob(base64.b64decode(value["content"]), large=False)
        elif item["key"] == "lfsFile":
            if value["oid"] not in request.server.stored:
                raise RefusedError(
                    400, f"LFS pointer of {value['path']} points to a file that does not exist"
                )
            files[value["path"]] = Blob(request.server.stored[value["oid"]], large=True)
        else:
            assert item["key"] == "deletedFile", item["key"]
            del files[value["path"]]
    made = repository.commit(message, files)
    answer = {
        "success": True,
        "commitOid": made.oid,
        "commitUrl": f"{request.server.url}/{repo_id}/commit/{made.oid}",
    }
    if "create_pr" in request.query:
        repository.pull_requests += 1
        repository.references[f"refs/pr/{repository.pull_requests}"] = made.oid
        answer["pullRequestUrl"] = (
            f"{request.server.url}/{repo_id}/discussions/{repository.pull_requests}"
        )
    else:
        repository.references[revision] = made.oid
    return as_json(answer)


def branch(request: Handler, body: bytes, repo_id: str, name: str) -> Answer:
    repository = request.repository(repo_id, write=True)
    if name in repository.references:
        raise RefusedError(409, "Reference already exists")
    repository.references[name] = repository.references["main"]
    return as_json({})


def info(request: Handler, body: bytes, repo_id: str, revision: str = "main") -> Answer:
    found = request.commit_at(repo_id, revision)
    siblings = [{"rfilename": name} for name in found.files]
    private = request.repository(repo_id).private
    return as_json(
        {"id": repo_id, "sha": found.oid, "private": private, "siblings": siblings, "tags": []}
    )


def tree(request: Handler, body: bytes, repo_id: str, revision: str) -> Answer:
    entries = []
    for name, blob in request.commit_at(repo_id, revision).files.items():
        entry: dict[str, Any] = {
            "type": "file",
            "path": name,
            "size": len(blob.content),
            "oid": blob.oid,
        }
        if blob.large:
            entry["lfs"] = {"oid": blob.oid, "size": len(blob.content), "pointerSize": 134}
        entries.append(entry)
    return as_json(entries)


def references(request: Handler, body: bytes, repo_id: str) -> Answer:
    named: dict[str, list[dict[str, str]]] = {
        "branches": [],
        "pullRequests": [],
        "converts": [],
        "tags": [],
    }
    for name, oid in request.repository(repo_id).references.items():
        kind = "pullRequests" if name.startswith("refs/pr/") else "branches"
        named[kind].append({"name": name, "ref": f"refs/heads/{name}", "targetCommit": oid})
    return as_json(named)


def resolve(request: Handler, body: bytes, repo_id: str, revision: str, name: str) -> Answer:
    found = request.commit_at(repo_id, revision)
    headers = {"X-Repo-Commit": found.oid}
    if name not in found.files:
        raise RefusedError(404, "Entry not found", "EntryNotFound", headers)
    blob = found.files[name]
    return 200, {**headers, "ETag": f'"{blob.oid}"', "Accept-Ranges": "none"}, blob.content


def unknown(request: Handler, body: bytes) -> Answer:
    raise RefusedError(404, "Not found")


_REPO = r"([\w.-]+/[\w.-]+)"
_ROUTES: list[tuple[str, str, re.Pattern[str], Callable[..., Answer]]] = [
    (route, method, re.compile(pattern), answer)
    for route, method, pattern, answer in (
        ("whoami", "GET", "/api/whoami-v2", whoami),
        ("create", "POST", "/api/repos/create", create),
        ("validate", "POST", "/api/validate-yaml", validate),
        ("preupload", "POST", f"/api/models/{_REPO}/preupload/([^/]+)", preupload),
        ("lfs_batch", "POST", rf"/{_REPO}\.git/info/lfs/objects/batch", lfs_batch),
        ("lfs_upload", "PUT", "/storage/([0-9a-f]{64})", store),
        ("commit", "POST", f"/api/models/{_REPO}/commit/([^/]+)", commit),
        ("branch", "POST", f"/api/models/{_REPO}/branch/([^/]+)", branch),
        ("info", "GET", f"/api/models/{_REPO}", info),
        ("info", "GET", f"/api/models/{_REPO}/revision/([^/]+)", info),
        ("tree", "GET", f"/api/models/{_REPO}/tree/([^/]+)", tree),
        ("refs", "GET", f"/api/models/{_REPO}/refs", references),
        ("resolve", "GET", f"/{_REPO}/resolve/([^/]+)/(.+)", resolve),
        ("unknown", "GET", ".*", unknown),
        ("unknown", "POST", ".*", unknown),
    )
]
