"""A server on this machine that misbehaves as it is told."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Request(BaseHTTPRequestHandler):
    """One request and the answer to it."""

    def do_GET(self):
        server: Server = self.server.ours  # type: ignore[attr-defined]
        server.asked.append((self.path, self.headers.get("Range")))
        answers = server.answers.pop(0) if server.answers else server.last
        with suppress(BrokenPipeError, ConnectionResetError):  # the client had enough
            answers(self)

    def log_message(self, *_):
        pass

    def head(self, status: int = 200, /, **headers: object) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()


Answer = Callable[[Request], None]


class Server:
    """What is asked and answered: first `answers`, one a request, then `last` for each further one."""

    def __init__(self, *answers: Answer) -> None:
        self.answers = list(answers[:-1])
        self.last = answers[-1]
        self.asked: list[tuple[str, str | None]] = []  # path and Range
        self.address = ""

    @property
    def ranges(self) -> list[str | None]:
        return [asked for _, asked in self.asked]


@contextmanager
def serving(*answers: Answer) -> Iterator[Server]:
    ours = Server(*answers)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Request)
    server.ours = ours  # type: ignore[attr-defined]
    server.daemon_threads = True
    ours.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield ours
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def tag(body: bytes) -> str:
    return f'"{hashlib.md5(body).hexdigest()}"'


def whole(body: bytes, **headers: object) -> Answer:
    """The file in one piece, whatever range is asked for."""

    def answer(request: Request) -> None:
        request.head(200, **({"Content_Length": len(body), "ETag": tag(body)} | headers))
        request.wfile.write(body)

    return answer


def well(body: bytes, upto: int | None = None, pause: float = 0.0, piece: int = 0) -> Answer:
    """The file as RFC 9110 has it: Range and If-Range are respected. It cuts off at byte `upto`, or sends in pieces."""

    def answer(request: Request) -> None:
        start = 0
        if request.headers.get("If-Range") == tag(body) and (asked := request.headers.get("Range")):
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
        if start >= len(body):
            request.head(416, Content_Range=f"bytes */{len(body)}")
            return
        if start:
            place = f"bytes {start}-{len(body) - 1}/{len(body)}"
            request.head(206, Content_Length=len(body) - start, ETag=tag(body), Content_Range=place)
        else:
            request.head(Content_Length=len(body), ETag=tag(body), Accept_Ranges="bytes")
        sent = body[start:upto]
        for at in range(0, len(sent), piece or max(len(sent), 1)):
            request.wfile.write(sent[at : at + (piece or len(sent))])
            request.wfile.flush()
            time.sleep(pause)

    return answer


def status(code: int, **headers: object) -> Answer:
    return lambda request: request.head(code, Content_Length=0, **headers)


def silent(seconds: float) -> Answer:
    return lambda request: time.sleep(seconds)
