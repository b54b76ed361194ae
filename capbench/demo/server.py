"""The server of the page, on this machine alone."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable
from contextlib import closing
from functools import cache
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock, Thread
from typing import TYPE_CHECKING, Any, TypeVar

from capbench.base.errors import CapbenchError
from capbench.data.picture_folder import pictures_in

if TYPE_CHECKING:
    from capbench.demo.answers import Answers

T = TypeVar("T")
HOST = "127.0.0.1"
# The page may load what comes from its own address, and no browser lets it ask another one.
POLICY = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; form-action 'self'; frame-ancestors 'self'"
# No other host is asked: nothing is reported, and an encoder whose weights are not at hand is refused.
SILENT = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "1"}


def serve(runs: Path, images: Path | None, port: int, say: Callable[[str], None]) -> None:
    """Serve the page on `port` (0: any free one) until Ctrl-C; `say` is told its address.

    Raises CapbenchError without a finished run, for a folder of images without a picture, a port that is taken, and
    where Gradio is not installed.
    """
    if not any(runs.glob("*/*/run.json")):
        raise CapbenchError(f"no finished run under {runs}; make one with: capbench run show-attend-tell")
    if images is not None:
        pictures_in(images)
    with closing(_listening(port)) as listening, TemporaryDirectory(prefix="capbench-demo-") as scratch:
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # a terminated server leaves no folder behind either
        os.environ |= {**SILENT, "GRADIO_TEMP_DIR": scratch}
        try:
            import gradio  # noqa: F401
        except ImportError as error:
            raise CapbenchError(f"the demo needs gradio: pip install 'capbench[demo]' ({error})") from error
        import uvicorn

        answers = _once(lambda: _answers(Path(scratch), runs, images))
        server = uvicorn.Server(uvicorn.Config(application(answers), log_level="warning", timeout_graceful_shutdown=1))
        say(f"http://{HOST}:{listening.getsockname()[1]} (Ctrl-C ends it)")
        Thread(target=answers, daemon=True).start()  # torch comes while the browser loads the page
        server.run(sockets=[listening])


def _once(make: Callable[[], T]) -> Callable[[], T]:
    """A function that returns what `make` made at its first call, in whichever thread that was."""
    made, lock = cache(make), Lock()

    def kept() -> T:
        with lock:
            return made()

    return kept


def _answers(scratch: Path, runs: Path, images: Path | None) -> Answers:
    from capbench.demo.answers import Answers
    from capbench.demo.models import Models

    return Answers(Models(runs, images), scratch)


def application(answers: Callable[[], Answers]) -> Any:
    """The page as an ASGI application."""
    import gradio
    from fastapi import FastAPI
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    from capbench.demo.page import asset, page, theme

    app = FastAPI(openapi_url=None)
    app.add_middleware(OwnHostOnly)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])
    style, script = (files("capbench.tools") / "assets" / f"look.{kind}" for kind in ("css", "js"))
    head = f"<script>{script.read_text(encoding='utf-8')}</script>"
    return gradio.mount_gradio_app(
        app, page(answers), "/", server_name=HOST, footer_links=[], run_history=False, mcp_server=False, ssr_mode=False,
        theme=theme(), css=style.read_text(encoding="utf-8") + asset("demo.css"), head=head, max_file_size=1,
    )  # fmt: skip


class OwnHostOnly:
    """Tells the browser with each answer to load nothing from elsewhere."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def sending(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"content-security-policy", POLICY.encode())]
            await send(message)

        await self.app(scope, receive, sending if scope["type"] == "http" else send)


def _listening(port: int) -> socket.socket:
    """A socket on this machine's own address. Raises CapbenchError where the port is taken."""
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((HOST, port))
        listening.listen()
    except OSError as error:
        listening.close()
        raise CapbenchError(f"cannot listen on port {port}: {error.strerror}; give another --port, or 0") from error
    return listening
