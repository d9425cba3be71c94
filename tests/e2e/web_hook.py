"""An HTTP server in the role of a web hook."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from e2e.rig import wait_until


class WebHook:
    """An HTTP server that keeps every request and answers from a list."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.requests: list[tuple[BaseHTTPRequestHandler, bytes]] = []
        self.answers: list[tuple[int, dict[str, str], bytes] | Callable[[], None]] = []
        hook = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                if self.headers.get("Transfer-Encoding") == "chunked":
                    body = b""
                    while size := int(self.rfile.readline(), 16):
                        body += self.rfile.read(size)
                        self.rfile.readline()
                    self.rfile.readline()
                else:
                    body = self.rfile.read(int(self.headers["Content-Length"]))
                hook.requests.append((self, body))
                answer = hook.answers.pop(0) if hook.answers else (200, {}, b"thanks")
                if callable(answer):
                    answer()
                    return
                status, headers, text = answer
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        scheme = "http"
        if tls is not None:
            scheme = "https"
            self.server.socket = tls.wrap_socket(self.server.socket, server_side=True)
        self.url = f"{scheme}://127.0.0.1:{self.server.server_port}/in?key=1"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def wait(self, count: int = 1) -> list[tuple[BaseHTTPRequestHandler, bytes]]:
        wait_until(lambda: len(self.requests) >= count, f"{count} requests")
        return self.requests

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
