"""What may answer at a Toolbox's endpoint without being a Toolbox host."""

from __future__ import annotations

import http.server
import socket
import socketserver
import ssl
import threading
from collections.abc import Generator
from contextlib import ExitStack, contextmanager

from localstack.certificates import ServerFiles

_CHUNK = b" " * 65536
_MORE_THAN_IS_READ = 17 * 1024 * 1024


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 30

    def do_GET(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        self.rfile.read(length)
        self.answer()

    do_PUT = do_POST = do_DELETE = do_GET

    def answer(self) -> None:
        """Overridden by each kind."""
        raise NotImplementedError

    def send(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


class _WebSite(_Handler):
    def answer(self) -> None:
        self.send(200, "text/html", b"<html><body>Welcome to nginx!</body></html>")


class _OtherApi(_Handler):
    def answer(self) -> None:
        self.send(404, "application/json", b'{"kind": "Status", "message": "page not found"}')


class _EmptyApi(_Handler):
    def answer(self) -> None:
        self.send(200, "application/json", b"[]")


class _Endless(_Handler):
    def answer(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(_MORE_THAN_IS_READ))
        self.end_headers()
        try:
            for _ in range(_MORE_THAN_IS_READ // len(_CHUNK)):
                self.wfile.write(_CHUNK)
        except OSError:
            self.close_connection = True  # the client has had enough, as it should


class _Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that break off are what these servers are for."""


class _Garbage(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        self.request.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")


class _Plain(socketserver.ThreadingMixIn, socketserver.TCPServer):
    daemon_threads = True


@contextmanager
def _served(server: socketserver.TCPServer) -> Generator[int]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=10)


def _https(handler: type[_Handler], files: ServerFiles) -> _Server:
    server = _Server(("127.0.0.1", 0), handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.certificate, files.key)
    # The handshake belongs to the thread of the connection, not to the one that accepts.
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    return server


@contextmanager
def odd_hosts(files: ServerFiles) -> Generator[dict[str, int]]:
    """Ports by what answers there: over TLS with the given certificate, except `garbage` and `silent`."""
    kinds = {"website": _WebSite, "other-api": _OtherApi, "empty-api": _EmptyApi, "endless": _Endless}
    with ExitStack() as stack:
        ports = {name: stack.enter_context(_served(_https(kind, files))) for name, kind in kinds.items()}
        ports["garbage"] = stack.enter_context(_served(_Plain(("127.0.0.1", 0), _Garbage)))
        silent = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=64))
        ports["silent"] = silent.getsockname()[1]
        yield ports
