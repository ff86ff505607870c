"""While a node runs: memory, progress, interrupts, what it shows."""

# pyright: reportMissingImports=false

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...core.errors import SettingsError


def free_memory() -> None:
    """Take the host's models off the device; it loads them again when it needs them."""
    import comfy.model_management

    comfy.model_management.unload_all_models()
    comfy.model_management.soft_empty_cache()


def device_memory() -> int:
    """Bytes of the graphics card; 0 where the host runs without one."""
    import comfy.model_management

    device = comfy.model_management.get_torch_device()
    kind = getattr(device, "type", "cpu")
    return 0 if kind in ("cpu", "mps") else int(comfy.model_management.get_total_memory(device))


def check_types(received: Mapping[str, str], declared: Mapping[str, Any]) -> None:
    """Refuse a wire of another type, as the host does for nodes that do not ask for the types.

    Raises:
        SettingsError: the type of a wire is not its input's.
    """
    try:
        from comfy_execution.validation import validate_node_input as fits
    except ImportError:

        def fits(received_type: str, input_type: str, strict: bool = False) -> bool:
            return received_type == input_type

    for name, kind in received.items():
        wanted = declared[name][0] if name in declared else kind
        wanted = wanted if isinstance(wanted, str) else "COMBO"
        if not fits(kind, wanted):
            raise SettingsError(
                f"The {name} input takes {wanted}, and what is connected to it is {kind}. "
                "Connect another."
            )


def progress_bar(total: int, node_id: str | None) -> Any:
    """A progress bar of a node; `show_progress` moves it."""
    import comfy.utils

    return comfy.utils.ProgressBar(total, node_id=node_id)


def show_progress(bar: Any, done: int, total: int, image: Any = None) -> None:
    """Move a progress bar, with a PIL image to show on the node, if there is one."""
    preview = None if image is None else ("JPEG", image, max(image.size))
    bar.update_absolute(done, max(1, total), preview)


def notify(node_id: str | None, text: str) -> None:
    """Write a line on a node while it runs."""
    if node_id is not None:
        import server

        server.PromptServer.instance.send_progress_text(text, node_id)


def executing_node() -> str | None:
    """The node that runs now, where the host tells."""
    try:
        from comfy_execution.utils import get_executing_context
    except ImportError:  # before ComfyUI 0.3.48
        return None
    context = get_executing_context()
    return context.node_id if context else None


def check_interrupt() -> None:
    """Raise the host's own exception if the person pressed Cancel. It is no `Exception`."""
    import comfy.model_management

    comfy.model_management.throw_exception_if_processing_interrupted()


def is_interrupt(error: BaseException) -> bool:
    """Whether that is what `check_interrupt` raises."""
    import comfy.model_management

    return isinstance(error, comfy.model_management.InterruptProcessingException)


def blocked() -> Any:
    """An output that makes the host leave out what needs it."""
    from comfy_execution.graph_utils import ExecutionBlocker

    return ExecutionBlocker(None)


def outcome(text: str, result: tuple[Any, ...], image: Any = None) -> dict[str, Any]:
    """What a node returns: its outputs, a text on it, and a PIL image, if there is one."""
    ui: dict[str, Any] = {"text": [text]}
    if image is not None:
        ui["images"] = [show_image(image)]
    return {"ui": ui, "result": result}


def show_image(image: Any) -> dict[str, str]:
    """A PIL image in the host's folder for previews; what a node's "images" output names."""
    import folder_paths

    place = folder_paths.get_temp_directory()
    full, name, count, subfolder, _ = folder_paths.get_save_image_path("dpdmd", place)
    file = f"{name}_{count:05}_.png"
    Path(full).mkdir(parents=True, exist_ok=True)
    image.save(Path(full) / file, compress_level=1)
    return {"filename": file, "subfolder": subfolder, "type": "temp"}
