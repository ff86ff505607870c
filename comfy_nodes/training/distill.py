"""DP-DMD Distill: a checkpoint and prompts become a few-step LoRA, in a process of its own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..host import folders, loras, running
from ..host.inputs import Input, node_input
from .knob_inputs import PRESET_CHOICES, PRESET_TOOLTIP, SHOWN_LAST, knob_inputs
from .words import in_node_words, node_words

if TYPE_CHECKING:
    from ...app.jobs import Job

WAIT, BACKGROUND, CHECK = "wait", "background", "check"
LOSSES = ("diversity_loss", "matching_gradient", "fake_loss")
"""The first one that a run has is what core's loss graph draws."""


def _lists() -> dict[str, list[str]]:
    """What the node's lists hold at this moment."""
    from .new_run import NOTHING, checkpoint_names

    return {
        "checkpoint": checkpoint_names(),
        "lora": [NOTHING, *folders.file_names("loras")],
        "encoder": [NOTHING, *folders.file_names("text_encoders")],
        "vae": [NOTHING, *folders.file_names("vae")],
    }


class Distill:
    """DP-DMD Distill."""

    DISPLAY_NAME = "DP-DMD Distill"
    CATEGORY = "DP-DMD/training"
    DESCRIPTION = (
        "Turns a checkpoint into a few-step LoRA by DP-DMD, from prompts alone. It trains in a "
        "process of its own and reads the checkpoint's file. The LoRA is written to the loras "
        "folder and carries how it is sampled."
    )
    SEARCH_ALIASES = (
        "train lora", "distillation", "few step training", "4 step", "turbo", "lightning", "dmd",
        "make lora",
    )  # fmt: skip
    RETURN_TYPES = ("LORA_MODEL", "LOSS_MAP", "STRING", "DPDMD_RECIPE")
    RETURN_NAMES = ("lora", "losses", "lora_name", "recipe")
    OUTPUT_TOOLTIPS = (
        "The LoRA's weights, for core's Load LoRA Model and Save LoRA Weights.",
        "The losses of every update, for core's Plot Loss Graph.",
        "The LoRA's name in the lists of loras.",
        "How the LoRA is sampled, for the samplers of this pack.",
    )
    FUNCTION = "distill"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Inputs of the node."""
        lists = _lists()
        return {
            "required": _required(lists) | knob_inputs(),
            "optional": _optional(lists) | knob_inputs(SHOWN_LAST) | _later(lists),
            "hidden": {"unique_id": "UNIQUE_ID", "graph": "PROMPT"},
        }

    @classmethod
    def IS_CHANGED(cls, **values: Any) -> Any:
        """A background run is looked at each time; a finished one only if its files changed."""
        if values.get("mode") == BACKGROUND:
            return float("nan")
        from .new_run import file_stamps

        return file_stamps(values)

    @classmethod
    def VALIDATE_INPUTS(
        cls,
        input_types: Mapping[str, str],
        checkpoint: str | None = None,
        prompts: str | None = None,
        prompts_file: str | None = None,
        output_name: str | None = None,
        settings_json: str | None = None,
        teacher_lora: str | None = None,
        clip_l: str | None = None,
        clip_g: str | None = None,
        t5: str | None = None,
        vae: str | None = None,
        qwen: str | None = None,
    ) -> bool:
        """What headers tell, before the graph is queued; an input on a wire is None here.

        Raises:
            DPDMDError: in the node's words. The host shows it once; a text that is returned would
                stand there for every input above.
        """
        from .new_run import check_early

        given = {name: value for name, value in locals().items() if isinstance(value, str)}
        declared = {**cls.INPUT_TYPES()["required"], **cls.INPUT_TYPES()["optional"]}
        with node_words():
            running.check_types(input_types, declared)
            check_early(given, input_types)
        return True

    def distill(
        self, unique_id: str | None = None, graph: Any = None, mode: str = WAIT, **values: Any
    ) -> dict[str, Any]:
        """Train, queue the training, or check what it would meet with.

        Raises:
            DPDMDError: something is wrong with the inputs, or the run failed.
        """
        with node_words():
            return self._distill(unique_id, graph, mode, values)

    def _distill(
        self, unique_id: str | None, graph: Any, mode: str, values: dict[str, Any]
    ) -> dict[str, Any]:
        from . import new_run as training
        from . import waiting

        training.check_trainer()
        asked = training.ask(values, graph, unique_id)
        if mode == CHECK:
            running.free_memory()
            job = waiting.wait(training.begin_check(asked), unique_id)
            waiting.check_ended(job)
            text, image = "\n".join([training.found(job), *asked.notes]), waiting.check_image(job)
            return running.outcome(in_node_words(text), self._nothing(), image)
        begins = not training.is_under_way(asked)
        job, notes = training.begin(asked)
        notes = [*asked.notes, *notes]
        if begins:
            running.free_memory()
            notes.append("ComfyUI's models were taken off the device to make room.")
        if mode == BACKGROUND and job.state != "finished":
            text = (
                f"Run {job.id} is {job.state}. Watch it in the DP-DMD panel or with DP-DMD Runs. "
                "Queue this node again when it is finished: then it gives the LoRA."
            )
            return running.outcome(in_node_words("\n".join([text, *notes])), self._nothing())
        job = waiting.wait(job, unique_id)
        waiting.check_ended(job)
        return _finished(job, notes)

    def _nothing(self) -> tuple[Any, ...]:
        """Outputs that leave out the nodes behind this one."""
        return (running.blocked(),) * len(self.RETURN_TYPES)


def _required(lists: Mapping[str, list[str]]) -> dict[str, Input]:
    prompts = {
        "multiline": True,
        "default": "",
        "placeholder": "Prompts, one a line; a few hundred are a good start.",
    }
    return {
        "checkpoint": node_input(
            lists["checkpoint"],
            "The checkpoint that becomes the teacher. The demo ones come with the pack and take "
            "minutes on any computer.",
        ),
        "prompts": node_input(
            "STRING", "One prompt a line. Only prompts are needed, no images.", **prompts
        ),
        "output_name": node_input(
            "STRING",
            "Name of the LoRA, with folders before it if you like, such as styles/mine; a number "
            "is added if it is taken.",
            default="my-4step",
        ),
        "preset": node_input(PRESET_CHOICES, PRESET_TOOLTIP, default="auto"),
        "mode": node_input(
            [WAIT, BACKGROUND, CHECK],
            "wait holds the queue until the LoRA is there, and Cancel keeps what there is. "
            "background queues the run and returns at once. check trains nothing: before a first "
            "run it tells in about fifteen minutes on a card whether this checkpoint can be "
            "distilled here with these settings.",
            default=WAIT,
        ),
    }


def _optional(lists: Mapping[str, list[str]]) -> dict[str, Input]:
    strength = {"default": 1.0, "min": -10.0, "max": 10.0, "step": 0.05}
    encoder = _encoder(lists)
    return {
        "model": node_input(
            "MODEL",
            "Takes the file of this MODEL in place of the chosen checkpoint. LoRAs and other "
            "patches on it are not seen by the trainer; name a LoRA under teacher_lora.",
        ),
        "prompts_file": node_input(
            "STRING",
            "A text file with one prompt a line, or a folder of images with prompts in them, in "
            "the input or output folder. It is added to the prompts above.",
            default="",
            advanced=True,
        ),
        "teacher_lora": node_input(
            lists["lora"],
            "A LoRA that is merged into the teacher, so that the student learns its style.",
            advanced=True,
        ),
        "teacher_lora_strength": node_input(
            "FLOAT", "How strongly that LoRA is merged.", **strength, advanced=True
        ),
        "include_teacher_lora": node_input(
            "BOOLEAN",
            "Whether the new LoRA holds the teacher's LoRA too, so that it is used alone.",
            default=False,
            advanced=True,
        ),
        "settings_json": node_input(
            "STRING",
            "All other settings as JSON, or a settings file's text. What stands here wins over the "
            "preset and the inputs above.",
            multiline=True,
            default="",
            advanced=True,
        ),
        "clip_l": encoder,
        "clip_g": encoder,
        "t5": encoder,
        "vae": node_input(lists["vae"], "Only for checkpoints without a VAE.", advanced=True),
    }


def _encoder(lists: Mapping[str, list[str]]) -> Input:
    return node_input(
        lists["encoder"], "Only for checkpoints without this text encoder.", advanced=True
    )


def _later(lists: Mapping[str, list[str]]) -> dict[str, Input]:
    """Inputs that came later: last, since saved workflows keep values by their place."""
    return {"qwen": _encoder(lists)}


def _finished(job: Job, notes: list[str]) -> dict[str, Any]:
    """The outputs of a run that has ended, and its last image on the node."""
    from ...core.errors import RunError
    from ...core.files.tensor_file import read_header
    from ...core.recipe.recipe import read_recipe
    from .new_run import lora_of
    from .waiting import latest_image

    path = lora_of(job)
    if path is None:
        raise RunError(
            f"Run {job.id} has ended, but its LoRA is not where it was written. It was moved or "
            "deleted; queue this node again to train it anew."
        )
    name = folders.listed_name("loras", path)
    said = f"{name} is in the loras folder"
    if job.state == "stopped":
        said = f"Stopped after update {job.step} of {job.steps}: {name} holds what there was"
    image = latest_image(job.path)
    recipe = read_recipe(read_header(path).metadata)
    result = (loras.read_weights(path), losses(job.path), name, recipe)
    text = in_node_words("\n".join([f"{said}.", *notes]))
    return running.outcome(text, result, image)


def losses(run: Path) -> dict[str, list[float]]:
    """The losses of a run, update by update; "loss" is what core's loss graph draws."""
    from ...app.runs.directory import RunDirectory
    from ...app.runs.facts import read_facts

    facts = read_facts(RunDirectory(run))
    found = {name: values for name in LOSSES if (values := facts.values(name))}
    return {"loss": next(iter(found.values()), []), **found}


NODES = (Distill,)
