"""Real hosts, started once for all tests that need them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from comfyui_server import FOLDER, ComfyUI


@pytest.fixture(scope="session")
def comfyui(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyUI]:
    """A running ComfyUI with this checkout, and a neighbour, among its custom nodes."""
    if not FOLDER:
        pytest.skip("COMFYUI_DIR names no ComfyUI")
    server = ComfyUI(tmp_path_factory.mktemp("comfyui"))
    try:
        server.start()
        yield server
    finally:
        server.stop()
