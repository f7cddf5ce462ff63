"""The few routes of the hub that downloads need, on loopback."""

import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class FakeHub:
    """Repositories made of local folders; keeps a list of the requests."""

    def __init__(self):
        self.folders = {}
        self.status = {}  # repository -> status and X-Error-Code to refuse with
        self.cut_after = {}  # file name -> bytes after which the first download breaks
        self.requests = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                hub.answer(self, with_body=True)

            def do_HEAD(self):
                hub.answer(self, with_body=False)

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def answer(self, http, with_body):
        path = unquote(urlsplit(http.path).path)
        self.requests.append((http.command, path, http.headers.get("Range"), http.headers.get("Authorization")))
        api = re.fullmatch(r"/api/models/([^/]+/[^/]+?)(?:/(revision|tree)/([^/]+))?", path)
        file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        match = api or file
        if not match:
            return self.send(http, 404, b"{}")
        repository = match[1]
        if repository in self.status:
            status, code = self.status[repository]
            return self.send(http, status, b"{}", {"X-Error-Code": code})
        if repository not in self.folders:
            return self.send(http, 404, b"{}", {"X-Error-Code": "RepoNotFound"})
        folder = self.folders[repository]
        revision = api[3] if api else file[2]
        if revision not in (None, "main", COMMIT):
            return self.send(http, 404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        names = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
        if api and api[2] == "tree":
            tree = [
                {"type": "file", "path": n, "size": (folder / n).stat().st_size, "oid": etag(folder / n)} for n in names
            ]
            return self.send(http, 200, json.dumps(tree).encode())
        if api:
            siblings = [{"rfilename": n, "size": (folder / n).stat().st_size} for n in names]
            body = {"id": repository, "modelId": repository, "sha": COMMIT, "siblings": siblings, "private": False}
            return self.send(http, 200, json.dumps(body).encode())
        return self.send_file(http, folder / file[3], with_body)

    def send_file(self, http, path, with_body):
        if not path.is_file():
            return self.send(http, 404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
        content = path.read_bytes()
        start = int(re.match(r"bytes=(\d+)-", http.headers.get("Range") or "bytes=0-")[1])
        http.send_response(206 if http.headers.get("Range") else 200)
        http.send_header("ETag", f'"{etag(path)}"')
        http.send_header("X-Repo-Commit", COMMIT)
        http.send_header("Accept-Ranges", "bytes")
        if http.headers.get("Range"):
            http.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        http.send_header("Content-Length", str(len(content) - start))
        http.end_headers()
        if not with_body:
            return None
        cut = self.cut_after.pop(path.name, None)
        http.wfile.write(content[start:] if cut is None else content[start : start + cut])
        if cut is not None:
            http.close_connection = True
        return None

    def send(self, http, status, body, headers=None):
        http.send_response(status)
        for name, value in (headers or {}).items():
            http.send_header(name, value)
        http.send_header("Content-Length", str(len(body)))
        http.end_headers()
        if http.command != "HEAD":
            http.wfile.write(body)


def etag(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()[:40]
