"""The sockets under the embedded Hub: reading requests, sending replies, and breaking off when told to."""

from __future__ import annotations

import json
import socket
import sys
import threading
import traceback
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, BinaryIO

from hfcart.demo.embedded_hub._call import Call, Reply, reply_json
from hfcart.demo.embedded_hub._repo import Refusal
from hfcart.demo.embedded_hub._routes import answer
from hfcart.demo.embedded_hub._store import CHUNK

if TYPE_CHECKING:
    from hfcart.demo.embedded_hub.hub import EmbeddedHub, Failure


class Body:
    """The body of a request: so many bytes, or chunks until an empty one.

    Reading raises ConnectionResetError where the client goes away before the end: half a commit is none.
    """

    def __init__(self, source: BinaryIO, headers: dict[str, str]) -> None:
        self._source = source
        self._chunked = "chunked" in headers.get("transfer-encoding", "").lower()
        self._left = 0 if self._chunked else int(headers.get("content-length") or 0)
        self._ended = not self._chunked

    def _more(self) -> bool:
        """Whether there is anything to read; goes on to the next chunk where one has ended."""
        if not self._left and not self._ended:
            size = self._source.readline(1000).partition(b";")[0]
            if not size.strip():
                raise ConnectionResetError
            self._left = int(size, 16)
            self._ended = not self._left
            if self._ended:
                while self._source.readline(1000).strip():
                    pass
        return self._left > 0

    def _took(self, data: bytes) -> bytes:
        """Count what was read; a chunk is followed by an empty line."""
        if not data:
            raise ConnectionResetError
        self._left -= len(data)
        if self._chunked and not self._left:
            self._source.readline(1000)
        return data

    def read(self, size: int = -1) -> bytes:
        """Up to `size` bytes (all by default); empty at the end."""
        parts = []
        while size and self._more():
            parts.append(self._took(self._source.read(self._left if size < 0 else min(size, self._left))))
            size -= len(parts[-1]) if size > 0 else 0
        return b"".join(parts)

    def readline(self, limit: int = -1) -> bytes:
        """One line of up to `limit` bytes; empty at the end."""
        line = b""
        while not line.endswith(b"\n") and limit != len(line) and self._more():
            line += self._took(self._source.readline(self._left if limit < 0 else min(limit - len(line), self._left)))
        return line

    def drain(self) -> None:
        """Read what is left, so that the connection can carry the next request."""
        while self.read(CHUNK):
            pass


class Handler(BaseHTTPRequestHandler):
    """One connection: its requests one after the other."""

    protocol_version = "HTTP/1.1"
    server_version = "EmbeddedHub"
    disable_nagle_algorithm = True
    server: Server

    def _serve(self) -> None:
        hub = self.server.hub
        headers = {name.lower(): value for name, value in self.headers.items()}
        body = Body(self.rfile, headers)  # type: ignore[arg-type]
        call = Call(hub.store, hub.url, self.command, self.path, headers, body, hub.page_size)
        failure = hub.note(self.command, self.path, headers.get("range"))
        if failure is None:
            return self._send(self._answer(call), body)
        stopped = self.server.stopping.wait(failure.delay)
        cut = failure.drop_after
        if stopped or failure.drop_request or (cut is not None and self.command == "PUT"):
            body.read(cut or 0)
            self.close_connection = True
            return None
        if cut is not None and self.command == "HEAD":
            self._answer(call)
            self.close_connection = True
            return None
        return self._send(self._failing(call, failure), body, failure)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _serve

    def _answer(self, call: Call) -> Reply:
        try:
            return answer(call)
        except Refusal as refusal:
            # Header values are one short line of ASCII; the sentence may quote anything.
            sentence = json.dumps(refusal.message)[1:-1][:500]
            headers = {"X-Error-Message": sentence, "X-Error-Code": refusal.code, "X-Repo-Commit": refusal.commit}
            found = {name: value for name, value in headers.items() if value is not None}
            return reply_json({"error": refusal.message}, refusal.status, found)
        except ConnectionError:
            raise
        except Exception as error:  # a fault of this Hub, or a client like none it knows: both must be seen
            traceback.print_exc()
            return reply_json({"error": f"Internal error: {type(error).__name__}"}, 500)

    def _failing(self, call: Call, failure: Failure) -> Reply:
        """The reply to a request that is to fail."""
        told = failure.status is not None and failure.body is None
        refusal = reply_json({"error": "This Hub was told to fail."}, failure.status or 200, dict(failure.headers))
        reply = refusal if told and not failure.after else self._answer(call)
        if failure.redirect is not None:
            address = failure.redirect.replace("{path}", self.path.partition("?")[0])
            return Reply(failure.status or 302, headers={**reply.headers, "Location": address})
        if failure.body is not None:
            return Reply(failure.status or 200, failure.body, {**reply.headers, **failure.headers})
        if failure.alter is not None and reply.size:
            reply = altered(reply, failure.alter)
        return refusal if told else reply

    def _send(self, reply: Reply, body: Body, failure: Failure | None = None) -> None:
        body.drain()
        self.send_response(reply.status)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        size = reply.size if failure is None or failure.promise is None else failure.promise
        self.send_header("Content-Length", str(size))
        self.end_headers()
        if self.command == "HEAD":
            return
        ends = [end for end in (failure.drop_after, failure.stall_after) if end is not None] if failure else []
        left = min([size, reply.size, *ends])
        step = max(1, left if failure is None or not failure.drip else left // 10)
        for start in range(0, left, step):
            self._send_part(reply, start, min(step, left - start))
            if failure is not None and failure.drip:
                self.server.stopping.wait(failure.drip)
        if failure is not None and failure.stall_after is not None:
            self.server.stopping.wait()
        if left < size:
            self.close_connection = True

    def _send_part(self, reply: Reply, start: int, count: int) -> None:
        if reply.path is None:
            self.wfile.write(reply.content[start : start + count])
        else:
            with reply.path.open("rb") as file:
                self.connection.sendfile(file, reply.start + start, count)

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing: the Hub keeps its own log."""


def altered(reply: Reply, at: int) -> Reply:
    """The reply with one bit of its body changed."""
    content = bytearray(reply.content)
    if reply.path is not None:
        with reply.path.open("rb") as file:
            file.seek(reply.start)
            content = bytearray(file.read(reply.length))
    content[at % len(content)] ^= 1
    return replace(reply, content=bytes(content), path=None)


class Server(ThreadingHTTPServer):
    """Listens on the loopback interface alone, one thread a connection."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, hub: EmbeddedHub) -> None:
        self.hub = hub
        self.stopping = threading.Event()
        self._open: set[socket.socket] = set()
        self._changed = threading.Condition()
        super().__init__(("127.0.0.1", 0), Handler)

    def process_request(self, request: socket.socket, client_address: object) -> None:  # type: ignore[override]
        """Start to serve a connection; `stop` knows of it from here on."""
        with self._changed:
            self._open.add(request)
        super().process_request(request, client_address)

    def process_request_thread(self, request: socket.socket, client_address: object) -> None:  # type: ignore[override]
        """Serve one connection to its end."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            with self._changed:
                self._open.discard(request)
                self._changed.notify_all()

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that goes away is no error here."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            traceback.print_exc()

    def stop(self) -> None:
        """Take no more connections, and end those there are, kept-alive ones too."""
        self.stopping.set()
        self.shutdown()
        with self._changed:
            for request in self._open:
                try:
                    request.shutdown(socket.SHUT_RDWR)
                except OSError:  # the client was faster
                    continue
            self._changed.wait_for(lambda: not self._open, timeout=10)
        self.server_close()
