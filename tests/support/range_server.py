"""A web server on this machine that serves the files of a folder, whole or in ranges, and counts
what it sends.
"""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote


@dataclass
class Served:
    """Where the server is and what it sent.

    Attributes:
        url: address of the folder.
        sent: bytes sent of each file.
        failures: answers with an error that are still to come.
    """

    url: str = ""
    sent: dict[str, int] = field(default_factory=dict)
    failures: int = 0


@contextmanager
def serve(folder: Path) -> Iterator[Served]:
    """Serve a folder while the context is open."""
    served = Served()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:  # noqa: N802
            self._answer(with_body=False)

        def do_GET(self) -> None:  # noqa: N802
            self._answer(with_body=True)

        def log_message(self, *values: object) -> None:
            return

        def _answer(self, *, with_body: bool) -> None:
            name = unquote(self.path).lstrip("/")
            if served.failures or not (folder / name).is_file():
                served.failures = max(0, served.failures - 1)
                self.send_response(503 if (folder / name).is_file() else 404)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            content = (folder / name).read_bytes()
            asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
            first = int(asked[1]) if asked else 0
            last = min(int(asked[2]) if asked and asked[2] else len(content), len(content) - 1)
            self.send_response(206 if asked else 200)
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Length", str(last + 1 - first))
            if asked:
                self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
            self.end_headers()
            if with_body:
                self.wfile.write(content[first : last + 1])
                served.sent[name] = served.sent.get(name, 0) + last + 1 - first

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
