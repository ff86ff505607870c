"""The ComfyUI nodes. There are none yet: both tables are empty and ComfyUI lists nothing."""

from __future__ import annotations

NODE_CLASS_MAPPINGS: dict[str, type] = {}
NODE_DISPLAY_NAME_MAPPINGS: dict[str, str] = {}
