"""A hub on loopback: the few answers of the Hugging Face hub that a download asks for, and its bad days."""

from __future__ import annotations

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """Serves `files[repository][filename]`; each number in `break_after` cuts one download off after so many bytes."""

    def __init__(self, files: dict[str, dict[str, bytes]]) -> None:
        self.files = files
        self.break_after: list[int] = []
        self.ranges: list[str | None] = []  # the Range header of every download, in order
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None:
                pass

            def do_HEAD(self) -> None:
                self._answer(body=False)

            def do_GET(self) -> None:
                self._answer(body=True)

            def _answer(self, *, body: bool) -> None:
                path = self.path.partition("?")[0]
                if path.startswith("/api/models/"):
                    return self._describe(path)
                repository, _, rest = path.strip("/").partition("/resolve/")
                content = hub.files.get(repository, {}).get(rest.partition("/")[2])
                if content is None:
                    return self._json(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"})
                start, status = 0, 200
                asked = self.headers.get("Range")
                if body:
                    hub.ranges.append(asked)
                if asked:
                    start, status = int(asked.removeprefix("bytes=").partition("-")[0]), 206
                self.send_response(status)
                self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
                self.send_header("X-Repo-Commit", COMMIT)
                self.send_header("Content-Length", str(len(content) - start))
                if status == 206:
                    self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
                self.end_headers()
                if body:
                    end = len(content)
                    if hub.break_after:
                        end = start + hub.break_after.pop(0)
                        self.close_connection = True
                    self.wfile.write(content[start:end])
                return None

            def _describe(self, path: str) -> None:
                repository = path.removeprefix("/api/models/").partition("/revision/")[0].partition("/tree/")[0]
                files = hub.files.get(repository)
                if files is None:
                    return self._json(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
                if "/tree/" in path:
                    return self._json(
                        200,
                        [
                            {"type": "file", "path": name, "size": len(content), "oid": COMMIT}
                            for name, content in files.items()
                        ],
                    )
                siblings = [{"rfilename": name} for name in files]
                return self._json(200, {"id": repository, "modelId": repository, "sha": COMMIT, "siblings": siblings})

            def _json(self, status: int, answer: Any, headers: dict[str, str] | None = None) -> None:
                body = json.dumps(answer).encode()
                self.send_response(status)
                for key, value in (headers or {}).items():
                    self.send_header(key, value)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Hub:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
