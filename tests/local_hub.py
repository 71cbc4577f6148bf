"""A small Hub over HTTP for tests, with repositories in memory and faults on demand."""

import base64
import contextlib
import hashlib
import json
import re
import socket
import threading
from collections import deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN = "hf_" + "x" * 20


class LocalHub:
    """A server that answers as the Hub does.

    `faults` are the faults of the next commits: an HTTP status, "hang", or a connection that is cut ("cut before" or
    "cut after" the commit is made).
    """

    def __init__(self):
        self.repositories = {}
        self.faults = deque()
        self.attempts = 0  # number of requests to commit
        self.seconds_hung = 60.0
        self.released = threading.Event()  # when it is set, requests no longer hang
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def environment(self, home, token=TOKEN):
        """Return the environment variables that make a process use this server as the Hub."""
        return {
            "HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_TELEMETRY": "1", "HF_TOKEN": token, "OMP_NUM_THREADS": "1", "NO_PROXY": "127.0.0.1",
        }  # fmt: skip

    def close(self):
        self.released.set()
        self.server.shutdown()
        self.server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass

    def answer(self, status, content=None, **headers):
        body = content if isinstance(content, bytes) else json.dumps(content or {}).encode()
        self.send_response(status)
        for name, value in {"Content-Length": len(body), "Content-Type": "application/json", **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def body(self):
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def cut(self):
        """End the connection without an answer."""
        self.close_connection = True
        with contextlib.suppress(OSError):  # the client may have closed it already
            self.connection.shutdown(socket.SHUT_RDWR)

    def known(self):
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def do_POST(self):
        body = self.body()
        if self.path == "/api/validate-yaml":
            return self.answer(200)
        if not self.known():
            return self.answer(401, {"error": "Invalid username or password."})
        if self.path == "/api/repos/create":
            wanted = json.loads(body)
            name = f"{wanted['organization']}/{wanted['name']}" if wanted.get("organization") else wanted["name"]
            exists = name in self.hub.repositories
            if not exists:
                self.hub.repositories[name] = {
                    # huggingface_hub 1.5 sends "private", newer versions "visibility"
                    "private": wanted.get("private") or wanted.get("visibility") == "private",
                    "files": {},
                    "messages": [],
                }
            return self.answer(409 if exists else 200, {"url": f"{self.hub.url}/{name}", "id": name})
        name, action = re.fullmatch(
            r"/api/models/([^/]+/[^/]+)/(preupload|commit)/main", self.path.split("?")[0]
        ).groups()
        if action == "preupload":
            files = [
                {"path": each["path"], "uploadMode": "regular", "shouldIgnore": False}
                for each in json.loads(body)["files"]
            ]
            return self.answer(200, {"files": files})
        return self.commit(name, [json.loads(line) for line in body.splitlines()])

    def commit(self, name, lines):
        self.hub.attempts += 1
        fault = self.hub.faults.popleft() if self.hub.faults else None
        if isinstance(fault, int):
            return self.answer(fault, {"error": f"fault {fault}"})
        if fault == "hang":
            self.hub.released.wait(self.hub.seconds_hung)
        if fault in ("hang", "cut before"):
            return self.cut()
        repository = self.hub.repositories[name]
        for line in lines:
            if line["key"] == "header":
                repository["messages"].append(line["value"]["summary"])
            elif line["key"] == "file":
                repository["files"][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            elif line["key"] == "deletedFile":
                del repository["files"][line["value"]["path"]]
        if fault == "cut after":
            return self.cut()
        commit = self.sha(name)
        return self.answer(
            200, {"success": True, "commitOid": commit, "commitUrl": f"{self.hub.url}/{name}/commit/{commit}"}
        )

    def sha(self, name):
        return hashlib.sha1(str(sorted(self.hub.repositories[name]["files"].items())).encode()).hexdigest()

    def do_GET(self):
        path = self.path.split("?")[0]
        found = re.fullmatch(r"(?:/api/models)?/([^/]+/[^/]+)(?:/(revision|tree|resolve)/([^/]+)(?:/(.*))?)?", path)
        repository = self.hub.repositories.get(found[1]) if found else None
        if repository is None or (repository["private"] and not self.known()):
            return self.answer(
                401 if not self.known() else 404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound"
            )
        files = repository["files"]
        if found[2] == "resolve":
            content = files.get(found[4])
            headers = {"X_Repo_Commit": self.sha(found[1]), "Content_Type": "application/octet-stream"}
            if content is None:
                return self.answer(404, {"error": "Entry not found"}, X_Error_Code="EntryNotFound", **headers)
            return self.answer(200, content, ETag=f'"{hashlib.sha1(content).hexdigest()}"', **headers)
        if found[2] == "tree":
            entries = [
                {"type": "file", "path": each, "size": len(content), "oid": git_oid(content)}
                for each, content in files.items()
            ]
            return self.answer(200, entries)
        information = {"id": found[1], "sha": self.sha(found[1]), "private": repository["private"], "tags": []}
        return self.answer(200, {**information, "siblings": [{"rfilename": each} for each in files]})

    do_HEAD = do_GET


def git_oid(content):
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
