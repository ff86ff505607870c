"""DP-DMD Studio: turn a local checkpoint and prompts into a few-step LoRA (arXiv:2602.03139).

The checkout is the package. Whoever loads it gives it a name: ComfyUI its own path, everybody else
`dpdmd_studio`. Nothing is imported here, so loading costs nothing and cannot fail.
"""

__version__ = "0.1.0"

WEB_DIRECTORY = "./web"  # what ComfyUI serves to the browser

_COMFYUI_NAMES = ("NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS")


def __getattr__(name: str) -> object:
    """The node tables, imported when ComfyUI asks for them; nobody else pays for it."""
    if name not in _COMFYUI_NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from . import comfy_nodes
    except AttributeError as error:  # hasattr() would swallow it and the nodes would vanish
        raise ImportError(f"the DP-DMD nodes failed to load: {error}") from error
    return getattr(comfy_nodes, name)
