"""The nodes that distil and that look at runs, with a stand-in for the host and its worker."""

from __future__ import annotations

import dataclasses
import inspect
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import checkpoints
import pytest
import torch
from comfy_host import lora_tensors
from dpdmd_studio.app import jobs
from dpdmd_studio.app.config.distill_config import DistillConfig
from dpdmd_studio.app.config.presets import DEMO, PRESETS
from dpdmd_studio.app.config.request import OTHER_FILES, ModelFiles
from dpdmd_studio.app.environment import readiness
from dpdmd_studio.app.estimate import estimate_file
from dpdmd_studio.app.jobs import spawn
from dpdmd_studio.app.runs import exit_note
from dpdmd_studio.app.runs.directory import RunDirectory
from dpdmd_studio.app.runs.lock import owned
from dpdmd_studio.comfy_nodes.training import knob_inputs, routes, waiting
from dpdmd_studio.comfy_nodes.training import new_run as training
from dpdmd_studio.comfy_nodes.training.distill import BACKGROUND, Distill, losses
from dpdmd_studio.comfy_nodes.training.knob_inputs import GIB, Card
from dpdmd_studio.comfy_nodes.training.runs import LATEST, Runs, run_choices
from dpdmd_studio.comfy_nodes.training.words import in_node_words
from dpdmd_studio.core.errors import (
    CheckpointError,
    LoraError,
    OutputError,
    PromptError,
    RunError,
    SettingsError,
)
from dpdmd_studio.core.families import identify
from dpdmd_studio.core.recipe.few_step import default_recipe
from dpdmd_studio.core.recipe.recipe import METADATA_KEY
from PIL import Image
from safetensors.torch import load_file, save_file

RECIPE = default_recipe("sd1", "eps")


class Cancelled(BaseException):
    """As the host's own: no Exception."""


class FakeHost:
    """What the nodes told the host. `script` is what happens at each look, one after the other."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.script: list[Callable[[], None]] = []
        self.freed = 0
        self.progress: list[tuple[int, int, bool]] = []
        self.said: list[str] = []
        for name in ("checkpoints", "loras", "input"):
            (base / name).mkdir()

    def file_path(self, kind: str, name: str) -> Path:
        path = self.base / kind / name
        if not path.exists():
            raise SettingsError(f"{name} is not among the {kind}.")
        return path

    def check_interrupt(self) -> None:
        if self.script:
            self.script.pop(0)()

    def free(self) -> None:
        self.freed += 1


@pytest.fixture(autouse=True)
def fake(monkeypatch, tmp_path, home, files) -> FakeHost:
    found = FakeHost(tmp_path)
    os.link(files["sd1"], tmp_path / "checkpoints" / "base.safetensors")
    stand_ins = {
        "folders.paths": lambda *kinds: [tmp_path / kinds[0]],
        "folders.file_path": found.file_path,
        "folders.input_folder": lambda: tmp_path / "input",
        "folders.output_folder": lambda: tmp_path / "output",
        "running.device_memory": lambda: 0,
        "running.free_memory": found.free,
        "running.progress_bar": lambda total, node_id: None,
        "running.show_progress": lambda bar, done, total, picture=None: found.progress.append(
            (done, total, picture is not None)
        ),
        "running.notify": lambda node_id, text: found.said.append(text),
        "running.check_interrupt": found.check_interrupt,
        "running.is_interrupt": lambda error: isinstance(error, Cancelled),
        "running.blocked": lambda: "blocked",
        "loras.read_weights": lambda path: {"read": path},
        "folders.listed_name": lambda kind, path: path.name,
        "running.show_image": lambda picture: {"filename": f"{picture.size}"},
    }
    for name, value in stand_ins.items():
        monkeypatch.setattr(f"dpdmd_studio.comfy_nodes.host.{name}", value)
    monkeypatch.setattr(waiting, "LOOK_SECONDS", 0.001)
    monkeypatch.setattr(spawn, "worker_lives", lambda: True)
    monkeypatch.setattr(readiness, "is_ready", lambda: True)
    return found


INPUTS = {
    "checkpoint": "base.safetensors", "prompts": "a cat\na dog", "output_name": "mine",
    "preset": "none", "steps": 8, "num_steps": 4, "resolution": "", "batch_size": 0,
    "student_rank": 0, "student_lr": 0.0, "teacher_guidance": 0.0, "diversity_weight": 0.05,
    "seed": 0,
}  # fmt: skip


def distil(mode: str = "wait", **changes: object) -> dict[str, Any]:
    return Distill().distill(unique_id="7", graph={}, mode=mode, **(INPUTS | changes))


def only_job() -> jobs.Job:
    (job,) = jobs.all_jobs()
    return job


def newest_run() -> RunDirectory:
    return RunDirectory(max(jobs.all_jobs(), key=lambda job: job.created_at).path)


def progress(run: RunDirectory, status: str, step: int) -> None:
    facts = {"status": status, "step": step, "steps": 8, "updated_at": time.time()}
    run.write_json("progress.json", facts)


def picture(run: RunDirectory, name: str, colour: str) -> None:
    Image.new("RGB", (32, 16), colour).save(run.previews / name)


def end(status: str, step: int, *, lora: bool = True) -> None:
    """What the worker leaves of the newest run."""
    run = newest_run()
    (run.path / "queued").unlink(missing_ok=True)
    progress(run, status, step)
    if lora:
        output = Path(run.settings()["output"])
        save_file({"x": torch.ones(1)}, output, {METADATA_KEY: RECIPE.to_json()})
        run.write_json("result.json", {"lora": str(output), "step": step})


# Inputs


def test_every_shown_setting_is_one_knob_with_its_bounds_and_words():
    specs = {spec.name: spec for spec in dataclasses.fields(DistillConfig)}
    inputs = knob_inputs.knob_inputs()
    assert list(inputs) == list(knob_inputs.SHOWN)
    for name, (kind, options) in inputs.items():
        spec = specs[name]
        assert options["tooltip"].startswith(spec.metadata["help"])
        if kind in ("INT", "FLOAT"):
            assert options["max"] == spec.metadata["high"]
            assert options["default"] in (0, spec.default)
    assert inputs["num_steps"][1]["default"] == 4
    assert inputs["steps"][1]["default"] == 0 and "200" in inputs["steps"][1]["tooltip"]
    assert inputs["seed"][1]["control_after_generate"] is False


def test_later_inputs_stand_last_and_may_be_missing():
    """Saved workflows hold values by place, and those for the API name what they know."""
    groups = Distill.INPUT_TYPES()
    assert list(groups["optional"])[-2:] == ["teacher_negative", "qwen"]
    card = Card("sd1", "", False, 0)
    assert knob_inputs.config_of({}, "none", card, "")[0].teacher_negative == ""
    shown = {"teacher_negative": " blurry\n"}
    assert knob_inputs.config_of(shown, "none", card, "")[0].teacher_negative == "blurry"
    config, _ = knob_inputs.config_of(shown, "none", card, '{"teacher_negative": "dark"}')
    assert config.teacher_negative == "dark"


def test_all_defaults_are_the_configs_own():
    shown = {name: options["default"] for name, (_, options) in knob_inputs.knob_inputs().items()}
    config, notes = knob_inputs.config_of(shown, "none", Card("sd1", "", False, 0), "")
    assert config == DistillConfig() and notes == []


def test_preset_then_input_then_json():
    card = Card("sd3", "", False, 0)
    shown = {"steps": 0, "batch_size": 3, "student_lr": 0.0, "teacher_guidance": 2}
    config, notes = knob_inputs.config_of(shown, "demo", card, '{"fake_lr": 1, "seed": 5}')
    assert (config.steps, config.student_lr) == (DEMO["steps"], DEMO["student_lr"])
    assert (config.batch_size, config.teacher_guidance) == (3, 2.0)
    assert (config.fake_lr, config.seed, config.num_anchored_steps) == (1.0, 5, 2)
    assert notes == ["Preset: demo."]
    config, _ = knob_inputs.config_of({"steps": 9}, "none", card, '{"steps": 11}')
    assert config.steps == 11


def test_a_settings_file_can_be_pasted():
    text = json.dumps({"kind": "dpdmd.settings", "version": 1, "config": {"fake_updates": 2}})
    assert knob_inputs.json_settings(text)["fake_updates"] == 2


def test_a_setting_that_an_earlier_version_had_is_left_out():
    assert knob_inputs.json_settings('{"shard_base": true, "steps": 2}') == {"steps": 2}


@pytest.mark.parametrize(
    ("family", "gib", "size", "words"),
    [
        ("sdxl", 23.6, "24gb", "24 GB"),
        ("sdxl", 15.7, "16gb", "16 GB"),
        ("sdxl", 8.0, "8gb", "8 GB"),
        ("sdxl", 6.0, "8gb", "may not fit"),
        ("sd1", 11.7, "12gb", "12 GB"),
        ("sd1", 80.0, "24gb", "80 GB"),
    ],
)
def test_auto_takes_the_preset_of_the_card(family, gib, size, words):
    values, notes = knob_inputs.preset_values("auto", Card(family, "", False, int(gib * GIB)))
    assert values == PRESETS[family][size]
    assert size in notes[0] and words in notes[0]


def test_auto_without_a_card_changes_nothing_and_knows_the_demo():
    assert knob_inputs.preset_values("auto", Card("sd1", "", False, 0))[0] == {}
    assert knob_inputs.preset_values("auto", Card("sd1", "", True, 0))[0] == DEMO


def test_the_trainer_that_is_not_installed_is_told_with_what_to_do(monkeypatch, fake):
    monkeypatch.setattr(readiness, "is_ready", lambda: False)
    with pytest.raises(SettingsError, match=r"DP-DMD panel.*install\.py setup"):
        distil()
    assert jobs.all_jobs() == [] and fake.freed == 0


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        ({"prompts": " \n"}, PromptError, "no prompts"),
        ({"prompts_file": "none.txt"}, PromptError, "no prompts file"),
        ({"prompts_file": "../secret.txt"}, SettingsError, "outside the folders"),
        ({"prompts_file": str(Path(__file__).resolve())}, SettingsError, "outside the folders"),
        ({"prompts": "a\x01"}, PromptError, "control characters"),
        ({"checkpoint": "gone.safetensors"}, SettingsError, "not among the checkpoints"),
        ({"checkpoint": "broken.safetensors"}, CheckpointError, "broken"),
        ({"teacher_lora": "gone.safetensors"}, SettingsError, "not among the loras"),
        ({"output_name": "../b"}, SettingsError, "Name the LoRA"),
        ({"output_name": "a//b"}, SettingsError, "Name the LoRA"),
        ({"output_name": "\\b"}, SettingsError, "Name the LoRA"),
        ({"output_name": "a/"}, SettingsError, "Name the LoRA"),
        ({"output_name": ""}, SettingsError, "Name the LoRA"),
        ({"settings_json": "steps=3"}, SettingsError, "no table"),
        ({"settings_json": '{"stepz": 3}'}, SettingsError, "stepz"),
        ({"settings_json": '{"steps": "x"}'}, SettingsError, "expected int"),
        ({"resolution": "wide"}, SettingsError, "not understood"),
        ({"num_steps": 1}, SettingsError, "least allowed is 2"),
        ({"preset": "7gb"}, SettingsError, "no preset"),
    ],
)
def test_bad_inputs_are_told_and_leave_nothing(fake, changes, kind, words):
    """What needs no more than headers and the text itself, before the graph is queued already."""
    (fake.base / "checkpoints" / "broken.safetensors").write_bytes(b"no model at all")
    with pytest.raises(kind, match=words):
        distil(**changes)
    if not {"resolution", "num_steps", "preset"} & set(changes) and "expected int" not in words:
        with pytest.raises(kind, match=words):
            validate(**changes)
    assert jobs.all_jobs() == [] and fake.freed == 0
    assert list((fake.base / "loras").iterdir()) == []


VALIDATED = set(inspect.signature(Distill.VALIDATE_INPUTS).parameters) - {"input_types"}


def validate(types: dict[str, str] | None = None, **changes: object) -> bool:
    """As the host asks before it queues a graph: without what is on a wire."""
    values = {name: value for name, value in (INPUTS | changes).items() if name in VALIDATED}
    return Distill.VALIDATE_INPUTS(types or {}, **values)  # type: ignore[arg-type]


def test_what_is_on_a_wire_is_not_looked_at_before_queueing(fake):
    assert validate() is True
    assert validate({"model": "MODEL"}, checkpoint="gone.safetensors", prompts="") is True
    values = {name: INPUTS[name] for name in ("checkpoint", "output_name")}
    assert Distill.VALIDATE_INPUTS({"prompts": "STRING"}, **values) is True  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match=r"model input takes MODEL, and .* is CLIP"):
        validate({"model": "CLIP"})


def test_teachers_and_their_loras_are_looked_at_before_queueing(fake, files):
    """A few-step LoRA as a teacher, one of another family, and text encoders that are missing."""
    loras = fake.base / "loras"
    save_file(lora_tensors(), loras / "few.safetensors", {METADATA_KEY: RECIPE.to_json()})
    with pytest.raises(LoraError, match="few-step LoRA that DP-DMD made, not a style"):
        validate(teacher_lora="few.safetensors")
    with pytest.raises(LoraError, match="few-step LoRA that DP-DMD made, not a style"):
        distil(teacher_lora="few.safetensors")
    keys = ("down.weight", "up.weight")
    sd3 = {
        f"lora_unet_joint_blocks_0_x_block_attn_qkv.lora_{key}": torch.ones(2, 2) for key in keys
    }
    save_file(sd3, loras / "other.safetensors")
    with pytest.raises(LoraError, match="LoRA for sd3, but the model is"):
        validate(teacher_lora="other.safetensors")
    without = fake.base / "checkpoints" / "without.safetensors"
    kept = {k: v for k, v in load_file(files["sd1"]).items() if not k.startswith("cond_stage")}
    save_file(kept, without)
    with pytest.raises(CheckpointError, match="fill in the clip_l input, or use the full checkp"):
        validate(checkpoint="without.safetensors")
    assert jobs.all_jobs() == []


@pytest.mark.parametrize(
    ("command_line", "node"),
    [
        ("give --clip-l FILE --clip-g FILE, or", "fill in the clip_l and clip_g inputs, or"),
        ("Swap --clip-l and --clip-g.", "Swap the clip_l and clip_g inputs."),
        ("name it with --teacher-lora FILE:STRENGTH.", "name it with the teacher_lora input."),
        ("--teacher-negative distils one", "the teacher_negative input distils one"),
        ("or lower --student-rank and --fake-rank.",
         "or lower the student_rank input and fake_rank in settings_json."),
        ("Lower --anchor-step or raise --teacher-steps.",
         "Lower anchor_step in settings_json or raise teacher_steps in settings_json."),
        ("Add `--overwrite` to", "Add `--overwrite` to"),
        ("disk (--run, or DPDMD_HOME for all runs), or",
         "disk (by the environment variable DPDMD_HOME), or"),
        ("a -- b --", "a -- b --"),
    ],
)  # fmt: skip
def test_options_are_called_what_the_node_calls_them(command_line, node):
    assert in_node_words(command_line) == node


def test_prompts_of_text_and_file_are_joined_each_once(fake):
    (fake.base / "input" / "more.txt").write_text("a dog\na bird <lora:x:1>\n")
    prompts, notes = training.prompts_of(
        {"prompts": "a cat\na dog", "prompts_file": "more.txt"}, world=""
    )
    assert prompts == ("a cat", "a dog", "a bird") and "LoRA tags" in notes[0]
    assert len(training.prompts_of({}, world="shapes")[0]) > 100


def model(**facts: object) -> Any:
    return SimpleNamespace(patches={}, object_patches={}, **facts)


def test_a_model_gives_its_file_and_its_patches_are_told(fake):
    path = fake.base / "checkpoints" / "base.safetensors"
    patched = model(cached_patcher_init=(None, (str(path), False), 0))
    found, notes = training.checkpoint({"model": patched}, None, "1")
    assert found == path and len(notes) == 1
    patched.patches = {"a": [1, 2], "b": [3]}
    patched.object_patches = {"model_sampling": None}
    (_, note) = training.checkpoint({"model": patched}, None, "1")[1]
    assert "3 patched weights" in note and "model_sampling" in note and "teacher_lora" in note


def test_a_model_of_an_older_host_is_found_in_the_graph(fake):
    graph = {
        "1": {"inputs": {"ckpt_name": "base.safetensors"}},
        "2": {"inputs": {"model": ["1", 0]}},
        "3": {"inputs": {"model": ["2", 0]}},
        "4": {"inputs": {"model": ["4", 0]}},
    }
    found, _ = training.checkpoint({"model": model()}, graph, "3")
    assert found == fake.base / "checkpoints" / "base.safetensors"
    for node in ("4", "none"):
        with pytest.raises(SettingsError, match="Load Checkpoint"):
            training.checkpoint({"model": model(cached_patcher_init=None)}, graph, node)


def test_a_teacher_lora_becomes_part_of_the_request(fake):
    save_file({"x": torch.ones(1)}, fake.base / "loras" / "style.safetensors")
    more = {"teacher_lora": "style.safetensors", "teacher_lora_strength": 0.5}
    request = training.ask(INPUTS | more | {"include_teacher_lora": True}, None, None).request
    assert request.teacher_loras[0].path.endswith("style.safetensors")
    assert (request.teacher_loras[0].strength, request.include_teacher_loras) == (0.5, True)
    plain = training.ask(INPUTS | {"include_teacher_lora": True}, None, None).request
    assert plain.teacher_loras == () and plain.include_teacher_loras is False


# Which run


def test_the_same_request_is_the_same_run_until_something_changes(fake):
    mark = training.ask(INPUTS, None, None).mark
    assert training.ask(dict(INPUTS), None, "9").mark == mark
    for change in ({"seed": 1}, {"prompts": "a cat"}, {"output_name": "other"}):
        assert training.ask(INPUTS | change, None, None).mark != mark
    checkpoint = fake.base / "checkpoints" / "base.safetensors"
    os.utime(checkpoint, (1, 1))
    assert training.ask(INPUTS, None, None).mark != mark


def test_a_finished_run_is_taken_while_its_lora_is_there(fake):
    job, _ = training.begin(training.ask(INPUTS, None, None))
    end("finished", 8)
    again, notes = training.begin(training.ask(INPUTS, None, None))
    assert again.id == job.id and "trained before" in notes[0]
    outcome = distil()
    assert outcome["result"][2] == "mine.safetensors" and fake.freed == 0
    (fake.base / "loras" / "mine.safetensors").unlink()
    anew, _ = training.begin(training.ask(INPUTS, None, None))
    assert anew.id != job.id and anew.state == "queued"


def test_a_run_with_another_rescale_is_not_taken_for_the_one_that_is_asked():
    v = {"prediction": "v", "zero_terminal_snr": "yes"}
    plain = INPUTS | {"settings_json": json.dumps(v | {"guidance_rescale": 0})}
    asked = training.ask(INPUTS | {"settings_json": json.dumps(v)}, None, None)
    assert asked.request.config.guidance_rescale == 0.7
    job, _ = training.begin(training.ask(plain, None, None))
    another, _ = training.begin(asked)
    assert another.id != job.id
    # where nothing is rescaled, left open and 0 are the same run
    left, zero = (INPUTS | {"settings_json": json.dumps(c)} for c in ({}, {"guidance_rescale": 0}))
    assert training.ask(left, None, None).mark == training.ask(zero, None, None).mark


def test_a_copy_of_a_run_does_not_hide_the_finished_one(fake):
    job, _ = training.begin(training.ask(INPUTS, None, None))
    end("finished", 8)
    copy = jobs.duplicate(job.id)
    again, _ = training.begin(training.ask(INPUTS, None, None))
    assert again.id == job.id and jobs.get_job(copy.id).state == "new"


def test_memory_is_freed_once_a_run(fake):
    distil(mode=BACKGROUND)
    distil(mode=BACKGROUND)
    assert fake.freed == 1 and len(jobs.all_jobs()) == 1


@pytest.mark.parametrize("state", ["stopped", "failed"])
def test_a_run_that_did_not_finish_goes_on(state):
    job, _ = training.begin(training.ask(INPUTS, None, None))
    end(state, 3)
    again, notes = training.begin(training.ask(INPUTS, None, None))
    assert (again.id, again.state) == (job.id, "queued")
    assert "goes on after update 3" in notes[0] and state in notes[0]


def test_a_waiting_run_is_not_queued_twice():
    job, _ = training.begin(training.ask(INPUTS, None, None))
    again, notes = training.begin(training.ask(INPUTS, None, None))
    assert again.id == job.id and "queued already" in notes[0]
    assert len(jobs.all_jobs()) == 1


def test_a_name_that_is_taken_gets_a_number(fake):
    (fake.base / "loras" / "mine.safetensors").write_bytes(b"theirs")
    _, notes = training.begin(training.ask(INPUTS, None, None))
    assert newest_run().settings()["output"].endswith("mine-2.safetensors")
    assert "mine.safetensors is taken" in notes[0]
    assert (fake.base / "loras" / "mine.safetensors").read_bytes() == b"theirs"


def test_a_full_disk_is_told_and_leaves_nothing(monkeypatch, fake):
    def full(*_: object, **__: object) -> None:
        raise OutputError("The disk is full. Free some room.")

    monkeypatch.setattr(RunDirectory, "create", full)
    with pytest.raises(OutputError, match="disk is full"):
        distil()
    assert jobs.all_jobs() == [] and list((fake.base / "loras").iterdir()) == []
    assert not list(jobs.files.runs().glob(".new-*"))


# Waiting


def test_a_name_may_have_folders_before_it(fake):
    for name in ("styles/v1.5/mine", "styles\\v1.5\\mine.safetensors"):
        path = training.output_file(name)
        assert path == fake.base / "loras" / "styles" / "v1.5" / "mine.safetensors"
    fake.script = [lambda: end("finished", 8)]
    distil(output_name="styles/v1.5/mine")
    assert path.is_file() and only_job().title == "mine"


def test_eight_widgets_are_in_sight_and_none_has_moved():
    """Saved workflows hold their values by the widgets' order."""
    groups = Distill.INPUT_TYPES()
    inputs = {**groups["required"], **groups["optional"]}
    widgets = [name for name in inputs if inputs[name][0] != "MODEL"]
    assert widgets == [
        "checkpoint", "prompts", "output_name", "preset", "mode", "steps", "num_steps",
        "resolution", "batch_size", "student_rank", "student_lr", "teacher_guidance",
        "diversity_weight", "seed", "prompts_file", "teacher_lora", "teacher_lora_strength",
        "include_teacher_lora", "settings_json", "clip_l", "clip_g", "t5", "vae",
        "teacher_negative", "qwen",
    ]  # fmt: skip
    assert [name for name in widgets if not inputs[name][1].get("advanced")] == [
        "checkpoint", "prompts", "output_name", "preset", "mode", "steps", "num_steps",
        "teacher_negative",
    ]  # fmt: skip
    auto = [name for name in widgets if inputs[name][1].get("dpdmd_auto")]
    assert {"student_lr", "batch_size", "teacher_guidance"} <= set(auto) and "seed" not in auto
    assert all(inputs[name][1]["default"] == 0 == inputs[name][1]["min"] for name in auto)


def test_parts_that_a_bare_model_lacks_are_taken_of_the_hosts_folders(fake, monkeypatch):
    for name in ("diffusion_models", "text_encoders", "vae"):
        (fake.base / name).mkdir()
    checkpoints.anima_files(fake.base / "diffusion_models")
    encoder = "qwen_3_06b_base.safetensors"
    os.rename(fake.base / "diffusion_models" / encoder, fake.base / "text_encoders" / encoder)
    listed = {"diffusion_models": ["anima.safetensors"]}
    monkeypatch.setattr(training.folders, "file_names", lambda kind: listed.get(kind, []))
    values = INPUTS | {"checkpoint": "diffusion_models/anima.safetensors"}
    asked = training.ask(values, {}, "7")
    said = f"Qwen3 text encoder: text_encoders/{encoder} is taken, as none was named."
    assert said in asked.notes and said in training.cost(values)
    assert asked.request.model.qwen == str(fake.base / "text_encoders" / encoder)
    for name in ("a", "b"):
        _, another = checkpoints.anima_files(fake.base)
        os.replace(another, fake.base / "text_encoders" / f"{name}.safetensors")
    os.remove(fake.base / "text_encoders" / encoder)
    with pytest.raises(CheckpointError, match="Say which with"):
        training.ask(values, {}, "7")


def test_few_prompts_are_warned_of_before_a_run(fake):
    warning = "right for images like these alone"
    many = "\n".join(f"a cat, number {number}" for number in range(training.FEW_PROMPTS))
    demo = next(iter(training.demo_checkpoints()))
    assert f"2 prompts: the LoRA will be {warning}" in training.cost(INPUTS)
    for change in ({"prompts": many}, {"prompts": " "}, {"checkpoint": demo}):
        assert warning not in training.cost(INPUTS | change)
    assert warning not in training.cost({k: v for k, v in INPUTS.items() if k != "prompts"})


def test_models_without_encoders_are_listed_by_their_folder(monkeypatch):
    listed = {"checkpoints": ["a.safetensors", "b.ckpt"], "diffusion_models": ["c.safetensors"]}
    folders = training.folders
    monkeypatch.setattr(folders, "file_names", lambda kind: list(listed[kind]))
    monkeypatch.setattr(folders, "file_path", lambda kind, name: Path("/models", kind, name))
    names = training.checkpoint_names()
    assert names[:2] == ["a.safetensors", "diffusion_models/c.safetensors"]
    assert training.checkpoint_file(names[0]) == Path("/models/checkpoints/a.safetensors")
    assert training.checkpoint_file(names[1]) == Path("/models/diffusion_models/c.safetensors")
    graph = {"1": {"inputs": {"unet_name": "c.safetensors"}}, "7": {"inputs": {"model": ["1", 0]}}}
    found = training.checkpoint_in_graph(graph, "7")
    assert found == Path("/models/diffusion_models/c.safetensors")


def test_few_prompts_are_told_but_for_a_demo(fake):
    assert any(
        "2 prompts: the LoRA will be right" in note for note in training.ask(INPUTS, {}, "7").notes
    )
    many = "\n".join(f"a cat of {number}" for number in range(50))
    assert not any(
        "will be right" in n for n in training.ask(INPUTS | {"prompts": many}, {}, "7").notes
    )


def test_progress_and_previews_are_shown_and_the_lora_comes_out(fake):
    held: list[Any] = []

    def begin() -> None:
        run = newest_run()
        (run.path / "queued").unlink()
        held.append(owned(run.path / "lock.json"))
        held[0].__enter__()
        progress(run, "running", 2)
        picture(run, "teacher.png", "red")

    def draw() -> None:
        progress(newest_run(), "running", 5)
        picture(newest_run(), "step-00000005.png", "blue")

    def finish() -> None:
        run = newest_run()
        run.append_metrics({"step": 1, "diversity_loss": 0.5, "fake_loss": 2})
        run.append_metrics({"step": 2, "diversity_loss": 0.25, "fake_loss": 1})
        end("finished", 8)
        held[0].__exit__(None, None, None)

    nothing = lambda: None  # noqa: E731
    fake.script = [nothing, begin, nothing, draw, nothing, finish]
    outcome = distil()
    lora, loss, name, recipe = outcome["result"]
    assert recipe == RECIPE
    assert lora == {"read": fake.base / "loras" / "mine.safetensors"}
    assert name == "mine.safetensors"
    assert loss["loss"] == [0.5, 0.25] and loss["fake_loss"] == [2.0, 1.0]
    assert all(type(value) is float for values in loss.values() for value in values)
    assert fake.progress == [(0, 8, False), (2, 8, True), (5, 8, True), (8, 8, False)]
    assert any(text.startswith("Running: update 5 of 8") for text in fake.said)
    assert "mine.safetensors is in the loras folder" in outcome["ui"]["text"][0]
    assert "to make room" in outcome["ui"]["text"][0] and fake.freed == 1
    assert outcome["ui"]["images"] == [{"filename": "(80, 32)"}]


def test_the_picture_is_the_teachers_beside_the_newest_students(fake):
    training.begin(training.ask(INPUTS, None, None))
    run = newest_run()
    assert waiting.latest_image(run.path) is None
    picture(run, "teacher.png", "red")
    picture(run, "step-00000002.png", "lime")
    picture(run, "step-00000010.png", "blue")
    found = waiting.latest_image(run.path)
    assert found is not None and found.size == (80, 32)
    assert found.getpixel((16, 24)) == (255, 0, 0) and found.getpixel((64, 24)) == (0, 0, 255)
    (run.previews / "step-00000011.png").write_bytes(b"half a pict")
    assert waiting.latest_image(run.path).size == (32, 32), "the teacher's alone until it is whole"


def cancel() -> None:
    raise Cancelled


def test_cancel_takes_a_waiting_run_out_of_the_queue(fake):
    fake.script = [lambda: None, cancel]
    with pytest.raises(Cancelled):
        distil()
    assert only_job().state == "new"


def test_cancel_stops_a_run_and_waits_until_it_has_kept_what_it_has(fake):
    held = []

    def begin() -> None:
        run = newest_run()
        (run.path / "queued").unlink()
        held.append(owned(run.path / "lock.json"))
        held[0].__enter__()
        progress(run, "running", 2)

    def still_busy() -> None:
        assert (newest_run().path / "stop").exists() and only_job().state == "stopping"

    def stopped() -> None:
        end("stopped", 3)
        held[0].__exit__(None, None, None)
        (newest_run().path / "stop").unlink()

    fake.script = [begin, cancel, still_busy, still_busy, stopped]
    with pytest.raises(Cancelled):
        distil()
    assert fake.script == [], "it waited to the end"
    assert only_job().state == "stopped" and (fake.base / "loras" / "mine.safetensors").exists()
    assert any("Cancelled" in text for text in fake.said)


def test_cancel_does_not_wait_for_a_process_that_has_kept_everything(fake):
    held = []

    def begin() -> None:
        run = newest_run()
        (run.path / "queued").unlink()
        held.append(owned(run.path / "lock.json"))
        held[0].__enter__()
        progress(run, "running", 2)

    fake.script = [begin, cancel, lambda: end("stopped", 3), cancel]
    with pytest.raises(Cancelled):
        distil()
    assert fake.script == [cancel] and only_job().state == "stopping"
    # queued again at once, it waits for the process to end and goes on
    fake.script = [lambda: None, lambda: held[0].__exit__(None, None, None)]
    job, notes = training.begin(training.ask(INPUTS, None, None))
    assert (job.id, job.state) == (only_job().id, "queued") and "after update 3" in notes[0]


def test_a_second_cancel_does_not_wait(fake):
    held = []

    def begin() -> None:
        run = newest_run()
        (run.path / "queued").unlink()
        held.append(owned(run.path / "lock.json"))
        held[0].__enter__()
        progress(run, "running", 2)

    fake.script = [begin, cancel, lambda: None, cancel]
    with pytest.raises(Cancelled):
        distil()
    assert only_job().state == "stopping"
    held[0].__exit__(None, None, None)


def test_another_end_of_the_host_leaves_the_run_alone(fake):
    def closed() -> None:
        raise KeyboardInterrupt

    fake.script = [closed]
    with pytest.raises(KeyboardInterrupt):
        distil()
    assert only_job().state == "queued"


def killed() -> None:
    end("running", 3, lora=False)
    exit_note.note(newest_run().path, -9, "The process was ended from outside (signal 9).")


def failed() -> None:
    end("failed", 0, lora=False)
    exit_note.note(newest_run().path, 2, "The device ran out of memory.")


@pytest.mark.parametrize(
    ("happens", "words"),
    [
        (killed, "ended from outside.*goes on where its last saved state is.*not affected"),
        (failed, "ran out of memory.*Fix the cause and queue this node again"),
        (lambda: jobs.stop(only_job().id), "taken out of the queue"),
        (lambda: jobs.delete(only_job().id), "no run"),
        (lambda: end("finished", 8, lora=False), "not where it was written"),
    ],
    ids=["killed", "failed", "taken out", "deleted", "no LoRA"],
)
def test_a_run_that_gives_no_lora_is_told_with_what_to_do(fake, happens, words):
    fake.script = [happens]
    with pytest.raises(RunError, match=words):
        distil()


def test_a_run_stopped_elsewhere_gives_what_it_has(fake):
    fake.script = [lambda: end("stopped", 3)]
    outcome = distil()
    assert outcome["result"][2] == "mine.safetensors"
    assert "Stopped after update 3 of 8" in outcome["ui"]["text"][0]


def test_what_stands_in_front_is_told(fake):
    training.begin(training.ask(INPUTS | {"seed": 5}, None, None))
    training.begin(training.ask(INPUTS | {"seed": 6}, None, None))
    fake.script = [lambda: None, cancel]
    with pytest.raises(Cancelled):
        distil()
    assert fake.said[0] == "Waits: 2 other runs are before it in the queue."


def test_a_worker_that_died_while_the_run_waits_is_started_again(fake, monkeypatch):
    woken = []
    monkeypatch.setattr(jobs, "ensure_worker", lambda: woken.append(1))
    monkeypatch.setattr(waiting, "WAKE_SECONDS", 0.0)
    fake.script = [lambda: None, lambda: None, lambda: end("finished", 8)]
    distil()
    assert woken


def test_in_the_background_nothing_is_waited_for(fake):
    fake.script = [cancel]
    outcome = distil("background")
    assert outcome["result"] == ("blocked",) * 4 and fake.freed == 1
    assert only_job().id in outcome["ui"]["text"][0] and only_job().state == "queued"
    fake.script = []
    end("finished", 8)
    assert distil("background")["result"][2] == "mine.safetensors"


def end_check(code: int, **result: object) -> None:
    path = only_job().path
    (path / "queued").unlink(missing_ok=True)
    facts = {"code": code, "message": "", "stopped": code != 0, "at": time.time()}
    (path / "exit.json").write_text(json.dumps(facts))
    (path / "output.txt").write_text(json.dumps(result) + "\n")


def test_a_check_trains_nothing_and_says_what_it_found(fake, home):
    folder = home / "checks" / "base-0123456789"
    folder.mkdir(parents=True)
    for name in ("teacher", "few-steps"):
        Image.new("RGB", (32, 16), "red").save(folder / f"{name}.png")
    line = {"name": "Memory", "found": "9 GiB", "verdict": "red", "advice": "Take less."}
    fake.script = [lambda: end_check(-15)]
    with pytest.raises(RunError, match="Queue this node again: it goes on"):
        distil("check")
    fake.script = [lambda: end_check(0, folder=str(folder), lines=[line], table="| t |")]
    outcome = distil("check")
    assert only_job().kind == "check" and fake.freed == 2
    assert outcome["result"] == ("blocked",) * 4
    assert "RED: Memory: 9 GiB. Take less." in outcome["ui"]["text"][0]
    assert outcome["ui"]["images"] == [{"filename": "(80, 32)"}]  # both sheets, each with a label


def test_the_host_runs_the_node_again_only_when_it_must(fake):
    assert Distill.IS_CHANGED(mode="background") != Distill.IS_CHANGED(mode="background")
    (fake.base / "input" / "more.txt").write_text("a dog\n")
    values = INPUTS | {"prompts_file": "more.txt", "mode": "wait"}
    before = Distill.IS_CHANGED(**values)
    assert Distill.IS_CHANGED(**values) == before
    (fake.base / "input" / "more.txt").write_text("a dog\na cat\n")
    assert Distill.IS_CHANGED(**values) != before


def test_losses_of_plain_dmd_are_those_it_has(fake):
    training.begin(training.ask(INPUTS, None, None))
    run = newest_run()
    run.append_metrics({"step": 1, "fake_loss": 3, "matching_gradient": 1})
    assert losses(run.path) == {"loss": [1.0], "matching_gradient": [1.0], "fake_loss": [3.0]}


# The node of runs


def test_runs_are_listed_with_titles_and_the_newest_is_shown(fake):
    with pytest.raises(RunError, match="no runs yet"):
        Runs().look(LATEST, "look")
    assert run_choices() == [LATEST]
    training.begin(training.ask(INPUTS, None, None))
    job = only_job()
    assert run_choices() == [LATEST, f"{job.id} · mine"]
    image, text, share = Runs().look(LATEST, "look")["result"]
    assert text.startswith("mine\n") and share == 0.0
    assert image.shape[-1] == 3 and float(image.max()) == 0.0
    end("stopped", 2)
    picture(newest_run(), "teacher.png", "red")
    image, text, share = Runs().look(f"{job.id} · old title", "look")["result"]
    assert share == 0.25 and "Stopped after 2 updates" in text
    assert image[0, 24, 16].tolist() == [1.0, 0.0, 0.0]


def test_runs_can_be_stopped_and_resumed():
    training.begin(training.ask(INPUTS, None, None))
    name = run_choices()[1]
    Runs().look(name, "stop")
    assert only_job().state == "new"
    Runs().look(name, "stop")  # reached already: it only looks
    assert only_job().state == "new"
    for _ in range(2):
        Runs().look(name, "resume")
        assert only_job().state == "queued"


@pytest.mark.parametrize("run", ["gone · x", "", "../..", " · "])
def test_a_run_that_has_gone_is_told(run):
    assert Runs.VALIDATE_INPUTS(run) is True
    with pytest.raises(RunError, match=r"no run|not the name of a run"):
        Runs().look(run, "look")


# Requests of the panel


def test_requests_are_answered_with_the_hosts_folders(fake):
    headers = {"Content-Type": "application/json"}
    body = json.dumps({"checkpoint": "base.safetensors", "prompts": "a cat"}).encode()
    found = routes.api.handle("POST", "/api/dpdmd/v1/runs", {}, body, headers)
    assert found.status == 200, found.body
    output = newest_run().settings()["output"]
    assert Path(output).parent == fake.base / "loras"
    assert routes.api.handle("POST", "/dpdmd/v1/runs", {}, None, headers).status == 413


def node_estimate(**changes: object) -> tuple[int, dict[str, str]]:
    """What the node's page is told of a run with these inputs."""
    body = json.dumps(INPUTS | changes).encode()
    headers = {"Content-Type": "application/json"}
    found = routes.api.handle("POST", "/api/dpdmd/v1/node-estimate", {}, body, headers)
    return found.status, json.loads(found.body)


def test_the_node_is_told_what_its_run_will_take(fake, files):
    config = DistillConfig(steps=8, student_rank=32)
    pages = estimate_file(files["sd1"], identify(files["sd1"]), config).text
    assert pages.startswith("Memory: less than 1 GB by arithmetic")
    few = "2 prompts: the LoRA will be right for images like these alone. A few hundred different"
    in_lines = f"{few} ones are a good start.\n" + pages.replace(" Time: ", "\nTime: ")
    assert node_estimate(student_rank=32, model=["4", 0]) == (200, {"text": in_lines})
    auto = f"Preset: none, as there is no graphics card.\n{in_lines}"
    assert node_estimate(student_rank=32, preset="auto") == (200, {"text": auto})


def test_an_estimate_that_cannot_be_says_why_in_the_nodes_words(fake, files):
    kept = {k: v for k, v in load_file(files["sd1"]).items() if not k.startswith("cond_stage")}
    save_file(kept, fake.base / "checkpoints" / "without.safetensors")
    status, answer = node_estimate(checkpoint="without.safetensors")
    assert status == 400 and "fill in the clip_l input" in answer["error"]
    status, answer = node_estimate(settings_json='{"fake_lr": ')
    assert status == 400 and "settings_json" in answer["error"]
    assert node_estimate(checkpoint="gone.safetensors")[0] == 400
    assert jobs.all_jobs() == []


def test_every_file_beside_a_checkpoint_is_an_input_that_is_checked_early():
    inputs = Distill.INPUT_TYPES()["optional"]
    checked = inspect.signature(Distill.VALIDATE_INPUTS).parameters
    fields = {field.name for field in dataclasses.fields(ModelFiles)}
    assert OTHER_FILES.keys() == fields - {"checkpoint"}
    assert OTHER_FILES.keys() <= inputs.keys() & checked.keys()
