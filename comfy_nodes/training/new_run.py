"""From a node's inputs to a run: which files, which settings, and whether it exists already."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...app import jobs
from ...app.config.distill_config import DistillConfig
from ...app.config.found_files import with_found_files
from ...app.config.new_run import settled
from ...app.config.request import OTHER_FILES, DistillRequest, ModelFiles, TeacherLora
from ...app.environment import readiness
from ...app.estimate import estimate_file
from ...app.findings.checkup import read_lines
from ...app.jobs import Job, files
from ...app.library import preferences
from ...app.library.choices import ASSETS, EMBEDDED, embedded_world, starter
from ...app.library.path_checks import lora_file, typed_path
from ...app.prompts.reading import parse_prompts, read_prompts
from ...core.errors import PromptError, RunError, SettingsError
from ...core.families import Detection, check_files, family
from ...core.lora.contents import check_family, read_teacher_header
from ...core.recipe.few_step import counted
from ..host import folders, loras, models, running
from .knob_inputs import Card, config_of, json_settings
from .waiting import until_ended
from .words import in_node_words, node_words

NOTHING = "none"
"""The choice of a list that means no file."""
FILE_KINDS = {name: "vae" if name == "vae" else "text_encoders" for name in OTHER_FILES}
BARE = "diffusion_models"
"""The host's folder of models without text encoders and VAE; stands before their names."""
ASKED = "comfyui"
"""Under this name in a run's settings stands what a node asked for, so that it finds it again."""
PLAIN_VALUES = (str, bool, int, float)
"""Types that a node's own inputs have; others come by wires."""
MAX_LINKS = 100
FEW_PROMPTS = 50
FEW = (
    "{count}: the LoRA will be right for images like these alone. A few hundred different ones are "
    "a good start."
)
Prompt = Mapping[str, Mapping[str, Any]]
"""The host's graph: node id -> {"class_type", "inputs"}."""


@dataclass(frozen=True)
class Asked:
    """What a node asks of the trainer, and what its user should know of it."""

    request: DistillRequest
    prompts: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def mark(self) -> str:
        """The same for the same request, on whatever day it is asked."""
        return self.request.extra[ASKED]


def demo_checkpoints() -> dict[str, Path]:
    """The embedded teachers, by what a list of checkpoints calls them."""
    return {label: ASSETS / name for name, label in EMBEDDED.items()}


def checkpoint_names() -> list[str]:
    """The host's checkpoints that may be distilled, its bare models, and the embedded ones."""
    listed = folders.file_names("checkpoints")
    listed += [f"{BARE}/{name}" for name in folders.file_names(BARE)]
    return [name for name in listed if name.endswith(".safetensors")] + list(demo_checkpoints())


def checkpoint_file(name: str) -> Path:
    """Where a checkpoint lies that the list of `checkpoint_names` holds.

    Raises:
        SettingsError: it has gone.
    """
    bare = name.removeprefix(f"{BARE}/")
    if bare != name and bare in folders.file_names(BARE):
        return folders.file_path(BARE, bare)
    return demo_checkpoints().get(name) or folders.file_path("checkpoints", name)


def check_trainer() -> None:
    """Raise SettingsError, with what to do, while the trainer is not installed."""
    if not readiness.is_ready():
        raise SettingsError(
            "The trainer is not installed. Open the DP-DMD panel in the sidebar and press Set it "
            f"up, or run in a terminal: {readiness.setup_command()} (the short form is `python "
            "install.py setup` in the pack's folder). Sampling works without it."
        )


def ask(values: Mapping[str, Any], graph: Prompt | None, node_id: str | None) -> Asked:
    """The request that a node's inputs describe.

    Args:
        values: the node's inputs by name.
        graph: the graph that the node is in, where the host tells.

    Raises:
        DPDMDError: a file is missing or no model, prompts or settings cannot be used.
    """
    path, notes = checkpoint(values, graph, node_id)
    model, found = _files(values, path)
    detection, config, said = _planned(values, model)
    world = embedded_world(path)
    prompts, more = prompts_of(values, world)
    lora = _chosen("loras", values.get("teacher_lora"))
    strength = float(values.get("teacher_lora_strength", 1.0))
    request = DistillRequest(
        model=model,
        config=config,
        output=str(output_file(values.get("output_name"))),
        teacher_loras=(TeacherLora(path=lora, strength=strength),) if lora else (),
        include_teacher_loras=bool(lora and values.get("include_teacher_lora", False)),
    )
    marked = _marked(request.absolute(), prompts)
    more = [*more, *_few(prompts, world)]
    return Asked(marked, prompts, (*notes, *found, *detection.notes, *more, *said))


def _few(prompts: Collection[str], world: str) -> list[str]:
    """A warning of prompts that are too few; the demo's world is small."""
    if len(prompts) >= FEW_PROMPTS or world:
        return []
    return [FEW.format(count=counted(len(prompts), "prompt"))]


def _few_asked(values: Mapping[str, Any], world: str) -> list[str]:
    """The same before a run is asked for; of no prompts, or of a folder of images, nothing."""
    name = str(values.get("prompts_file") or "").strip()
    if not str(values.get("prompts") or "").strip() and not name:
        return []
    if name and prompts_path(name).is_dir():
        return []
    return _few(prompts_of(values, world)[0], world)


def cost(values: Mapping[str, Any]) -> str:
    """What a run with a node's inputs will take, before it is asked for: the pages' estimate.

    Raises:
        DPDMDError: in the node's words; a file is missing or no model, or a setting is wrong.
    """
    known = {name: value for name, value in values.items() if isinstance(value, PLAIN_VALUES)}
    with node_words():
        path, _ = checkpoint(known, None, None)
        model, taken = _files(known, path)
        detection, config, said = _planned(known, model)
        found = estimate_file(path, detection, config)
        said = [*said, *_few_asked(known, embedded_world(path))]
    return in_node_words("\n".join([*taken, *said, found.text.replace(" Time: ", "\nTime: ")]))


def _files(values: Mapping[str, Any], path: Path) -> tuple[ModelFiles, tuple[str, ...]]:
    """(the checkpoint and the files beside it, what is said of those that were found) of inputs."""
    others = {name: _chosen(kind, values.get(name)) for name, kind in FILE_KINDS.items()}
    named = ModelFiles(checkpoint=str(path), **others)
    return with_found_files(named, folders.paths("text_encoders"), folders.paths("vae"))


def _planned(
    values: Mapping[str, Any], model: ModelFiles
) -> tuple[Detection, DistillConfig, list[str]]:
    """(what the checkpoint is, settings, what is said of these) of a node's inputs."""
    path = Path(model.checkpoint)
    detection = check_files(path, model.text_encoders(), Path(model.vae) if model.vae else None)
    embedded, memory = bool(embedded_world(path)), running.device_memory()
    card = Card(detection.family, detection.title, embedded, memory)
    shown = {name: value for name, value in values.items() if value is not None}
    chosen, json_text = values.get("preset", "auto"), values.get("settings_json") or ""
    config, said = config_of(shown, chosen, card, json_text)
    return detection, settled(config, detection), said


def check_early(given: Mapping[str, str], wired: Collection[str]) -> None:
    """What can be told before a graph is queued, from headers and the text itself.

    Args:
        given: values of inputs by name.
        wired: the inputs whose values are not known yet.

    Raises:
        DPDMDError: something of that is missing, no model, or does not fit.
    """
    check_trainer()
    if "output_name" in given:
        output_file(given["output_name"])
    json_settings(given.get("settings_json", ""))
    world, detection = "", None
    if not {"checkpoint", "model"} & set(wired):
        path, _ = checkpoint(given, None, None)
        if not OTHER_FILES.keys() & set(wired):
            model, _ = _files(given, path)
            vae = Path(model.vae) if model.vae else None
            detection = check_files(path, model.text_encoders(), vae)
        world = embedded_world(path)
    name = given.get("prompts_file", "").strip()
    in_folder = name and prompts_path(name).is_dir()  # many images would be read each time
    if not in_folder and not {"prompts", "prompts_file", "checkpoint", "model"} & set(wired):
        prompts_of(given, world)
    if lora := _chosen("loras", given.get("teacher_lora")):
        contents = read_teacher_header(Path(lora))
        if detection is not None:
            check_family(contents, family(detection.family))


def output_file(name: object) -> Path:
    """The LoRA's file of that name, which may have folders before it, in the first loras folder.

    Raises:
        SettingsError: a part of it that no file or folder may be called.
        OutputError: the folder cannot be made.
    """
    *above, last = str(name or "").replace("\\", "/").split("/")
    folder = folders.paths("loras")[0]
    for part in above:
        folder /= lora_file(folder, part).stem
    return lora_file(folder, last)


def _chosen(kind: str, name: object) -> str | None:
    return str(folders.file_path(kind, str(name))) if name and name != NOTHING else None


def checkpoint(
    values: Mapping[str, Any], graph: Prompt | None, node_id: str | None
) -> tuple[Path, list[str]]:
    """(the teacher's file, notes): that of the MODEL if one is connected, else the chosen one."""
    model, name = values.get("model"), str(values.get("checkpoint"))
    if model is None:
        return checkpoint_file(name), []
    path = models.checkpoint_of(model) or checkpoint_in_graph(graph or {}, node_id)
    if path is None:
        raise SettingsError(
            "Which file this MODEL was loaded from cannot be found out: its loader does not say. "
            "Disconnect it and choose the checkpoint in this node's list, or load it with core's "
            "Load Checkpoint."
        )
    notes = [f"Teacher: {path.name}, the file of the connected MODEL."]
    changes = _changes(model)
    if changes:
        notes.append(
            f"The MODEL carries {changes}. The trainer reads the file and does not see them: name "
            "a LoRA under teacher_lora instead, so that it becomes part of the teacher."
        )
    return path, notes


def _changes(model: models.Model) -> str:
    """What was done to a MODEL since it was loaded, in words; "" for nothing."""
    patches, objects = loras.patch_count(model), models.changed_objects(model)
    words = [f"{patches} patched weights (LoRAs)"] if patches else []
    words += [f"another {', '.join(objects)}"] if objects else []
    return " and ".join(words)


def checkpoint_in_graph(graph: Prompt, node_id: str | None) -> Path | None:
    """The checkpoint whose loader the node's MODEL comes from, along inputs named model."""
    inputs = graph.get(str(node_id), {}).get("inputs", {})
    for _ in range(MAX_LINKS):
        link = inputs.get("model")
        if not isinstance(link, list) or not link:
            break
        inputs = graph.get(str(link[0]), {}).get("inputs", {})
    for kind, named in (("checkpoints", "ckpt_name"), (BARE, "unet_name")):
        if isinstance(name := inputs.get(named), str):
            return folders.file_path(kind, name)
    return None


def prompts_of(values: Mapping[str, Any], world: str) -> tuple[tuple[str, ...], list[str]]:
    """(prompts, notes) of the text and the file; a demo checkpoint has its world's own.

    Raises:
        PromptError: there are none, or the file cannot be used.
    """
    text, name = str(values.get("prompts") or ""), str(values.get("prompts_file") or "").strip()
    lists = [parse_prompts(text, "The prompts input")] if text.strip() else []
    if name:
        lists.append(read_prompts(prompts_path(name)))
    if not lists and world:
        lists = [parse_prompts(starter(world), "The demo's prompts")]
        return lists[0].prompts, ["Prompts: the demo's own captions, as none were given."]
    if not lists:
        raise PromptError(
            "There are no prompts. Write some into the prompts input, one a line (a few hundred "
            "are a good start), or name a text file under prompts_file."
        )
    merged = dict.fromkeys(prompt for found in lists for prompt in found.prompts)
    return tuple(merged), [note for found in lists for note in found.notes]


def prompts_path(name: str) -> Path:
    """A file or folder of prompts: one in the host's input or output folder, or that the GUI knows.

    Whoever may queue a graph could otherwise have any file of this machine rendered into an image.

    Raises:
        SettingsError: it lies elsewhere.
    """
    path = (folders.input_folder() / typed_path(name.strip('"'))).resolve()
    allowed = [
        folders.input_folder(),
        folders.output_folder(),
        *map(Path, preferences.load().folders),
    ]
    if not any(path.is_relative_to(folder.resolve()) for folder in allowed):
        places = ", ".join(str(folder) for folder in allowed)
        raise SettingsError(
            f"{name} lies outside the folders that prompts are read from ({places}). Put it into "
            "the input folder, or paste the prompts."
        )
    return path


def _marked(request: DistillRequest, prompts: tuple[str, ...]) -> DistillRequest:
    """The request with a mark of all that decides what comes out of it."""
    stamps = [_stamp(Path(name)) for name in request.files()]
    facts = json.dumps([request.to_dict(), prompts, stamps], sort_keys=True)
    mark = hashlib.sha256(facts.encode("utf-8", "surrogatepass")).hexdigest()
    request.extra[ASKED] = mark
    return request


def _stamp(path: Path) -> list[int]:
    """Size and time of change: another file under the same name is another teacher."""
    try:
        facts = path.stat()
    except OSError:
        return []
    return [facts.st_size, facts.st_mtime_ns]


def file_stamps(values: Mapping[str, Any]) -> str:
    """Changes when a file that the inputs name does; for the host's cache of outputs."""
    name, prompts = str(values.get("checkpoint")), str(values.get("prompts_file") or "").strip()
    paths = [checkpoint_file(name)]
    if prompts:
        paths.append(prompts_path(prompts))
    for input, kind in (*FILE_KINDS.items(), ("teacher_lora", "loras")):
        chosen = _chosen(kind, values.get(input))
        paths += [Path(chosen)] if chosen else []
    return repr([_stamp(path) for path in paths])


def earlier_run(asked: Asked) -> Job | None:
    """A run that was asked for in the same words: a finished one, else one under way, else any.

    A copy made in the panel carries the words of its original; it does not hide a finished one.
    """
    found = []
    for job in jobs.all_jobs():
        extra = files.read_json(job.path / files.SETTINGS).get("extra")
        same = isinstance(extra, dict) and extra.get(ASKED) == asked.mark
        if same and (job.state != "finished" or lora_of(job) is not None):
            found.append(job)
    rank = {"finished": 0, "running": 1, "stopping": 1, "starting": 1, "queued": 2, "new": 4}
    return min(found, key=lambda job: rank.get(job.state, 3), default=None)


def is_under_way(asked: Asked) -> bool:
    """Whether what is asked for is done, runs or waits already, so that nothing new begins."""
    job = earlier_run(asked)
    return job is not None and (job.live or job.state in ("queued", "finished"))


def lora_of(job: Job) -> Path | None:
    """The LoRA that a run wrote, if it is there."""
    path = job.result.get("lora")
    return Path(path) if isinstance(path, str) and Path(path).is_file() else None


def begin(asked: Asked) -> tuple[Job, list[str]]:
    """(the run that does what was asked for, notes): an earlier one goes on or is taken as it is.

    Raises:
        DPDMDError: the run cannot be made or started.
    """
    job = earlier_run(asked)
    if job is None:
        return _new(asked)
    job = until_ended(job)  # cancelled a moment ago
    if job.state == "finished":
        return job, [f"This was trained before: the result of run {job.id} is taken."]
    if job.live or job.state == "queued":
        return job, [f"This is run {job.id}, which is {job.state} already."]
    return jobs.start(job.id), [
        f"Run {job.id} was asked for the same and was {job.state}: it goes on after update "
        f"{job.step}. Change the seed, or delete it in the DP-DMD panel, to begin anew."
    ]


def begin_check(asked: Asked) -> Job:
    """The job that checks what was asked for; one that was cancelled goes on.

    Raises:
        DPDMDError: the job cannot be made or started.
    """
    return jobs.submit_check(asked.request, asked.prompts)


def found(job: Job) -> str:
    """What a check found, a line for each question.

    Raises:
        RunError: it was stopped before it was done.
    """
    lines = read_lines(job.result)
    if not lines:
        raise RunError(
            f"The check {job.id} was stopped. Queue this node again: it goes on after its last "
            "finished part."
        )
    said = [f"{line.verdict.upper()}: {line.name}: {line.found}. {line.advice}" for line in lines]
    more = "The DP-DMD panel shows it as a table that can be pasted."
    return "\n".join([*(text.strip() for text in said), more])


def _new(asked: Asked) -> tuple[Job, list[str]]:
    wanted = Path(asked.request.output)
    output = jobs.free_output(wanted)
    request = dataclasses.replace(asked.request, output=str(output))
    job = jobs.submit_distill(request, asked.prompts, output.stem)
    taken = f"{wanted.name} is taken; the LoRA will be {output.name}."
    return job, [taken] if output != wanted else []
