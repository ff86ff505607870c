"""The standalone GUI: one page in the browser, served to this computer unless told otherwise."""

from __future__ import annotations

import os
import secrets
import socket
import sys
import threading
import webbrowser
from pathlib import Path

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import gradio as gr
import uvicorn
from fastapi import FastAPI, Request, Response

from ...core.errors import DPDMDError, SettingsError
from .. import jobs
from ..library.home import home
from . import studio
from .guard import Guard, is_local
from .widgets.html import piece
from .widgets.run_pieces import report_of
from .widgets.theme import theme

ROOT = Path(__file__).parents[2]
STYLES = (ROOT / "style.css", Path(__file__).parent / "assets" / "page.css")
SCRIPT = ROOT / "javascript" / "dpdmd_studio.js"
LOCAL = "127.0.0.1"
FIRST_PORT, PORTS = 7868, 20
SHORTEST_TOKEN = 12
MAX_UPLOAD = 32 << 20
TITLE = "DP-DMD Studio"
# Reports are pages of their own: no scripts, nothing from elsewhere.
REPORT_POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; sandbox allow-popups; "
    "frame-ancestors 'self'"
)


def serve(
    *, listen: str = LOCAL, port: int | None = None, token: str = "", open_browser: bool = True
) -> None:
    """Serve the GUI until interrupted.

    Args:
        listen: address to listen on; any but this computer's own needs a token.
        port: None takes the first free one from FIRST_PORT on.
        token: what others must know; made at random where one is needed and none is given.

    Raises:
        SettingsError: the port is taken, the address is not of this computer, or a short token.
    """
    if token and len(token) < SHORTEST_TOKEN:
        raise SettingsError(
            f"The token has {len(token)} characters; use {SHORTEST_TOKEN} or more, or leave "
            "--token out: one is made."
        )
    token = token or ("" if is_local(listen) else secrets.token_urlsafe(24))
    channel = _listen(listen, port)
    everywhere = listen in ("0.0.0.0", "::")
    shown = socket.gethostname() if everywhere else f"[{listen}]" if ":" in listen else listen
    address = f"http://{shown}:{channel.getsockname()[1]}/" + (f"?token={token}" if token else "")
    application = build_app(token or None, any_host=not is_local(listen))
    sys.stderr.write(f"{TITLE} is at {address}\nStop it with Ctrl-C; runs go on without it.\n")
    if open_browser:
        threading.Timer(0.5, webbrowser.open, [address]).start()
    settings = uvicorn.Config(application, log_level="warning", access_log=False)
    uvicorn.Server(settings).run(sockets=[channel])


def _listen(host: str, port: int | None) -> socket.socket:
    ports = [port] if port is not None else range(FIRST_PORT, FIRST_PORT + PORTS)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    problem = OSError("no port")
    for number in ports:
        channel = socket.socket(family, socket.SOCK_STREAM)
        try:
            if os.name != "nt":  # there it would let two servers have the same port
                channel.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            channel.bind((host, number))
            channel.listen(128)
            return channel
        except (OSError, OverflowError) as error:
            channel.close()
            problem = error
    raise SettingsError(
        f"{host}, port {ports[0] if port is not None else f'{FIRST_PORT} and those after it'}, "
        f"cannot be used ({problem}). Name another with --port or --listen."
    )


def build_app(token: str | None = None, *, any_host: bool = False) -> Guard:
    """The whole GUI as an ASGI application."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_api_route("/studio/report/{id}", report, methods=["GET"])
    packages = home() / "packages"
    with gr.Blocks(title=TITLE, analytics_enabled=False, fill_width=True) as blocks:
        gr.HTML(piece("header", TITLE), elem_classes=["dp"])
        for show in studio.build(lambda job: f"/studio/report/{job.id}?{int(job.updated_at)}"):
            show(blocks.load)
    gr.mount_gradio_app(
        app,
        blocks,
        path="",
        allowed_paths=[str(packages)],
        show_error=True,
        max_file_size=MAX_UPLOAD,
        ssr_mode=False,
        footer_links=[],
        theme=theme(),
        css="\n".join(path.read_text(encoding="utf-8") for path in STYLES),
        head=piece("script", SCRIPT.read_text(encoding="utf-8")),
    )
    return Guard(app, token, any_host=any_host)


def report(id: str, request: Request) -> Response:
    """The report of a job, as a page that can do nothing but be read."""
    headers = {"content-security-policy": REPORT_POLICY}
    try:
        path = report_of(jobs.get_job(id))
        text = (
            path.read_text(encoding="utf-8")
            if path
            else piece("paragraph", "There is no report yet.")
        )
    except (DPDMDError, OSError, ValueError) as error:
        return Response(piece("paragraph", error), 404, headers, "text/html")
    return Response(text, 200, headers, "text/html; charset=utf-8")
