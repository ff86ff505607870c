"""Run by a ComfyUI's own Python: whether its server accepts workflows as the canvas sends them.

`python comfyui_workflow_program.py COMFYUI_DIR JOB.json`; the job lists `workflows` (canvas files)
and, by kind of model, the `files` that the workflows name. Inputs and the order of widgets come
from ComfyUI's own node classes; the verdict is that of `execution.validate_prompt`.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")


def widgets(kind: type) -> list[str]:
    """Names of a node's widgets in the canvas's order; "" is the one that changes the seed."""
    found = []
    for group in ("required", "optional"):
        for name, spec in kind.INPUT_TYPES().get(group, {}).items():
            if isinstance(spec[0], list) or spec[0] in WIDGETS:
                found.append(name)
                if len(spec) > 1 and spec[1].get("control_after_generate"):
                    found.append("")
    return found


def as_prompt(graph: dict, kinds: dict[str, type]) -> dict[str, dict]:
    """What the canvas sends for a workflow; notes stay on the canvas."""
    links = {link[0]: link for link in graph["links"]}
    prompt = {}
    for node in graph["nodes"]:
        if node["type"] == "Note":
            continue
        named = zip(widgets(kinds[node["type"]]), node["widgets_values"], strict=False)
        inputs: dict[str, object] = {name: value for name, value in named if name}
        for slot in node["inputs"]:
            inputs[slot["name"]] = [str(links[slot["link"]][1]), links[slot["link"]][2]]
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    return prompt


async def verdicts(job: dict) -> list[object]:
    """For every workflow: (accepted, error, errors by node)."""
    import execution
    import folder_paths
    import nodes

    await nodes.init_extra_nodes(init_custom_nodes=False, init_api_nodes=False)
    models = Path(job["models"])
    for kind, names in job["files"].items():
        (models / kind).mkdir(parents=True)
        for name in names:
            (models / kind / name).touch()
        folder_paths.add_model_folder_path(kind, str(models / kind), is_default=True)
    found = []
    for path in job["workflows"]:
        graph = json.loads(Path(path).read_text(encoding="utf-8"))
        prompt = as_prompt(graph, nodes.NODE_CLASS_MAPPINGS)
        good, error, outputs, by_node = await execution.validate_prompt("test", prompt, None)
        found.append({"good": good, "error": error, "outputs": len(outputs), "nodes": by_node})
    return found


def main() -> None:
    """Judge the job's workflows and write what was found beside it."""
    folder, job_file = sys.argv[1], Path(sys.argv[2])
    job = json.loads(job_file.read_text(encoding="utf-8"))
    sys.path.insert(0, folder)
    sys.argv = [sys.argv[0], "--cpu"]
    import comfy.options

    comfy.options.enable_args_parsing()
    found = asyncio.run(verdicts(job))
    Path(job["verdicts"]).write_text(json.dumps(found, default=str), encoding="utf-8")


if __name__ == "__main__":
    main()
