"""The `gui` command's options."""

from __future__ import annotations

import argparse

from ..core.errors import SettingsError


def add_gui(parser: argparse.ArgumentParser) -> None:
    """Options of the `gui` command."""
    parser.add_argument(
        "--listen",
        default="127.0.0.1",
        metavar="HOST",
        help="address to listen on; others than this computer need the token that "
        "is printed (default: 127.0.0.1)",
    )
    parser.add_argument("--port", type=int, metavar="N", help="default: the first free from 7868")
    parser.add_argument(
        "--token",
        default="",
        metavar="TEXT",
        help="ask for this token (default: a random one if others can connect)",
    )
    parser.add_argument("--no-browser", action="store_true", help="do not open a browser")
    parser.set_defaults(run_command=run_gui)


def run_gui(arguments: argparse.Namespace) -> int:
    """Serve the GUI until interrupted; returns the exit code."""
    try:
        from ..app.gui.app import serve
    except ModuleNotFoundError as error:
        raise SettingsError(
            f"The pages need {error.name}, which this environment lacks. Bring it up to date: "
            "python install.py setup"
        ) from error
    serve(
        listen=arguments.listen,
        port=arguments.port,
        token=arguments.token,
        open_browser=not arguments.no_browser,
    )
    return 0
