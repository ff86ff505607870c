"""Run on a web UI's tree: what its own code reads from pictures and the LoRA they name, as JSON.

`python webui_infotext_program.py WEBUI_DIR LORA PICTURE...`. The web UI itself is not started.
Whole modules that run as they are: modules/infotext_utils.py, modules/infotext_versions.py,
modules/prompt_parser.py. Single functions and classes, taken out of their files unchanged:
read_info_from_image (modules/images.py), read_metadata_from_safetensors (modules/sd_models.py),
SdVersion (not in Neo) and NetworkOnDisk (extensions-builtin/Lora/network.py), infotext_pasted with
its pattern (extensions-builtin/Lora/scripts/lora_script.py; Forge: sd_forge_lora), and Neo's
uses_emphasis (backend/text_processing/emphasis.py). Stand-ins:
gradio, lark, piexif and the modules that would start the web UI; shared.opts has its defaults.
"""

from __future__ import annotations

import ast
import enum
import json
import os
import re
import runpy
import sys
import tempfile
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace

from PIL import Image

STAND_INS = ("shared", "ui_tempdir", "script_callbacks", "processing", "images", "errors")
DEFAULTS = {
    "infotext_styles": "Apply if any",
    "infotext_skip_pasting": [],
    "use_old_hires_fix_width_height": False,
    "auto_backcompat": True,
    "forge_additional_modules": [],
    "sd_model_checkpoint": "",
    "lora_preferred_name": "Alias from file",
}


class NoStyles:
    """A1111's style database with no style in it."""

    def extract_styles_from_prompt(self, prompt: str, negative: str) -> tuple[list, str, str]:
        return [], prompt, negative


def stand_in(name: str, **attributes: object) -> ModuleType:
    """A module of that name with these attributes, importable from now on."""
    module = ModuleType(name)
    vars(module).update(attributes)
    sys.modules[name] = module
    parent, _, own = name.rpartition(".")
    if parent in sys.modules:
        setattr(sys.modules[parent], own, module)
    return module


def prepare(root: Path) -> SimpleNamespace:
    """Make A1111's modules importable; its options."""
    modules = stand_in("modules")
    modules.__path__ = [str(root / "modules")]
    for name in STAND_INS:
        stand_in(f"modules.{name}")
    stand_in("modules.paths", data_path=str(root))
    stand_in("gradio", update=dict, skip=dict, Button=None, Textbox=None, Gallery=None, Image=None)
    stand_in("modules_forge")
    stand_in("modules_forge.main_entry", module_list={})
    emphasis = root / "backend/text_processing/emphasis.py"
    if "uses_emphasis" in all_defined(emphasis):
        stand_in("backend")
        stand_in("backend.text_processing")
        stand_in("backend.text_processing.emphasis", uses_emphasis=partial(uses_emphasis, emphasis))
    stand_in("lark", Lark=lambda *_, **__: None)  # for prompt editing, which is not parsed here
    shared = sys.modules["modules.shared"]
    shared.opts = SimpleNamespace(**DEFAULTS)
    shared.prompt_styles = NoStyles()
    return shared


def uses_emphasis(source: Path, prompt: str) -> bool:
    """Neo's function of that name."""
    from modules.prompt_parser import parse_prompt_attention

    known: dict[str, object] = {"parse_prompt_attention": parse_prompt_attention}
    taken_from(source, {"uses_emphasis"}, known)
    return known["uses_emphasis"](prompt)  # type: ignore[operator]


def taken_from(path: Path, names: set[str], known: dict[str, object]) -> dict[str, object]:
    """Definitions of a file by name, executed among `known`."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    kept = [node for node in tree.body if names & set(defined(node))]
    found = {name for node in kept for name in defined(node)}
    assert names <= found, f"{path} lacks {names - found}"
    future = ast.parse("from __future__ import annotations").body
    text = ast.unparse(ast.Module([*future, *kept], []))
    with tempfile.NamedTemporaryFile("w", suffix=".py", delete=False, encoding="utf-8") as file:
        file.write(text)
    try:
        known.update(runpy.run_path(file.name, init_globals=known))
    finally:
        os.unlink(file.name)
    return known


def defined(node: ast.AST) -> list[str]:
    """Names that a statement defines."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    if isinstance(node, ast.Assign):
        return [target.id for target in node.targets if isinstance(target, ast.Name)]
    return []


def all_defined(path: Path) -> set[str]:
    """Every name that a file defines; none where there is no file."""
    if not path.is_file():
        return set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {name for node in tree.body for name in defined(node)}


def lora_on_disk(root: Path, lora: Path) -> tuple[object, object]:
    """(the LoRA as A1111's extension lists it, the extension's function for pasted texts)."""
    reader = taken_from(root / "modules/sd_models.py", {"read_metadata_from_safetensors"}, {})
    networks = stand_in("networks", available_network_hash_lookup={})
    known = {
        "enum": enum,
        "os": os,
        "metadata_tags_order": {},
        "sd_models": SimpleNamespace(**reader),
        "cache": SimpleNamespace(cached_data_for_file=lambda _, __, ___, read: read()),
        "hashes": SimpleNamespace(sha256_from_cache=lambda *_, **__: None),
    }
    places = (root / "extensions-builtin" / name for name in ("Lora", "sd_forge_lora"))
    extension = next(place for place in places if place.is_dir())
    source = extension / "network.py"
    kinds = {"NetworkOnDisk"} | {"SdVersion"} & all_defined(source)  # Neo tells no version
    network = taken_from(source, kinds, known)
    on_disk = network["NetworkOnDisk"](lora.stem, str(lora))
    on_disk.get_alias = lambda: on_disk.alias
    script = extension / "scripts/lora_script.py"
    pasted = taken_from(script, {"re_lora", "infotext_pasted"}, {"re": re, "networks": networks})
    return on_disk, pasted["infotext_pasted"]


def main() -> None:
    """Read every picture and print what was found."""
    root, lora = Path(sys.argv[1]), Path(sys.argv[2])
    prepare(root)
    from modules.infotext_utils import parse_generation_parameters

    images = taken_from(
        root / "modules/images.py",
        {"IGNORED_INFO_KEYS", "read_info_from_image"},
        {"Image": Image, "piexif": None, "json": json},
    )
    on_disk, pasted = lora_on_disk(root, lora)
    found = []
    for path in sys.argv[3:]:
        with Image.open(path) as picture:
            picture.load()
            text, _ = images["read_info_from_image"](picture)
        read = parse_generation_parameters(text)
        before = read["Prompt"]
        pasted(text, read)
        found.append({**read, "Prompt": before, "Pasted": read["Prompt"]})
    facts = {
        "alias": on_disk.alias,
        "shorthash": on_disk.shorthash,
        "version": on_disk.sd_version.name if hasattr(on_disk, "sd_version") else None,
    }
    sys.stdout.write(json.dumps({"lora": facts, "pictures": found}))


if __name__ == "__main__":
    main()
