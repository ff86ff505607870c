"""Run by a ComfyUI's own Python: what its server tells a browser, one JSON line an event.

`python comfyui_listener.py ADDRESS CLIENT`; frames of pictures become {"type": "picture", "bytes"}.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time


def say(event: dict) -> None:
    """One line."""
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


async def listen(address: str, client: str) -> None:
    """Print events until the server goes away."""
    import aiohttp

    async with aiohttp.ClientSession() as session:
        url = f"ws://{address}/ws?clientId={client}"
        async with session.ws_connect(url, max_msg_size=0) as socket:
            say({"type": "listening"})
            async for message in socket:
                event: dict = {"type": "picture", "bytes": len(message.data)}
                if message.type == aiohttp.WSMsgType.TEXT:
                    event = json.loads(message.data)
                say({**event, "at": time.time()})


if __name__ == "__main__":
    asyncio.run(listen(*sys.argv[1:3]))
