"""The pages without their widgets: what handlers answer to what a person chose or typed."""

from __future__ import annotations

import dataclasses
import gzip
import json
import os
import re
from html import unescape
from pathlib import Path

import pytest
import torch
from dpdmd_studio.app import jobs
from dpdmd_studio.app.config.distill_config import DistillConfig
from dpdmd_studio.app.config.presets import DEMO
from dpdmd_studio.app.estimate import bytes_in_16_bit
from dpdmd_studio.app.findings.diagnosis import Finding
from dpdmd_studio.app.gui.forms import compare as compare_form
from dpdmd_studio.app.gui.forms import controls, distill_hints
from dpdmd_studio.app.gui.forms import distill as distill_form
from dpdmd_studio.app.gui.forms import share as share_form
from dpdmd_studio.app.gui.pages import compare as compare_page
from dpdmd_studio.app.gui.pages import share as share_page
from dpdmd_studio.app.gui.widgets import html, run_pieces, runs_view
from dpdmd_studio.app.gui.widgets.page_words import in_page_words
from dpdmd_studio.app.jobs import spawn
from dpdmd_studio.app.library import choices as sources
from dpdmd_studio.app.library import preferences
from dpdmd_studio.app.runs.directory import RunDirectory
from dpdmd_studio.app.runs.settings_file import config_text, import_settings
from dpdmd_studio.core.errors import DPDMDError, SettingsError
from dpdmd_studio.core.recipe.few_step import default_recipe
from dpdmd_studio.core.recipe.recipe import METADATA_KEY
from PIL import Image, PngImagePlugin
from safetensors.torch import load_file, save_file

EMOJI = str(sources.ASSETS / "emoji-sd3.safetensors")
EMOJI_EPS = str(sources.ASSETS / "emoji-sd1.safetensors")
HOSTILE = '<img src=x onerror="alert(1)">\'"&'
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(autouse=True)
def no_worker(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs are queued in a data folder of the test's own, with its models; none is begun."""
    monkeypatch.setattr(spawn, "ensure_worker", lambda: False)
    monkeypatch.setattr(sources, "default_folders", list)  # whatever lies beside the checkout


@pytest.fixture
def form() -> dict:
    return distill_form.initial()


@pytest.fixture
def run(form: dict) -> jobs.Job:
    """A queued distillation of the demo."""
    return jobs.get_job(distill_form.submit(form)["selected"])


def task(job: jobs.Job) -> list[str]:
    return json.loads((job.path / "task.json").read_text(encoding="utf-8"))["arguments"]


def text_of(markup: str) -> str:
    return re.sub(r"\s+([;.])", r"\1", re.sub(r"<[^>]+>", " ", markup))


def tiny_lora() -> bytes:
    """A safetensors file of one tensor that has a LoRA's name."""
    entry = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    header = json.dumps({"lora_unet_x.lora_down.weight": entry}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(4)


# Distil


def test_a_first_visit_needs_one_click(form, home):
    answer = distill_form.submit(form)
    (job,) = jobs.all_jobs()
    settings = RunDirectory(job.path).settings()
    assert answer["selected"] == job.id and job.state == "queued"
    assert {name: settings["config"][name] for name in DEMO} == DEMO
    assert settings["model"]["checkpoint"] == str(Path(EMOJI).resolve())
    assert settings["output"] == str(home.resolve() / "loras" / "emoji-4step.safetensors")
    assert all(answer[f"{part}_note"] == "" for part in distill_form.PLACES)
    assert "queue" in text_of(answer["start_note"])


def chosen(form: dict, checkpoint: str) -> dict:
    """The form after another checkpoint was chosen in it."""
    form = form | {"checkpoint": checkpoint}
    for name, value in distill_hints.fit_checkpoint(form).items():
        form[name] = value["value"] if isinstance(value, dict) else value
    return form


def test_a_demo_that_is_chosen_needs_one_click_and_takes_its_settings_along(files):
    preferences.remember(folders=(str(files["sd1"].parent),))
    untouched = distill_form.FORM | DistillConfig().to_dict()
    untouched |= {"checkpoint": str(files["sd1"]), "output_folder": str(files["sd1"].parent)}
    demo = chosen(untouched, EMOJI_EPS)
    assert {name: demo[name] for name in DEMO} == DEMO
    assert (demo["memory"], demo["name"], demo["starter"]) == ("demo", "emoji-4step", "emoji")
    assert len(demo["prompts"].splitlines()) == 400 and "400 prompts" in demo["prompts_count"]
    jobs.get_job(distill_form.submit(demo)["selected"])
    back = chosen(demo, str(files["sd1"]))
    assert {name: back[name] for name in untouched} == untouched
    assert (back["prompts_count"], back["starter"]) == ("No prompts yet.", "photo")
    again = distill_form.initial()  # as remembered, while a host has another checkpoint loaded
    assert again["memory"] == "demo" and again["checkpoint"] == EMOJI_EPS


def test_a_demo_keeps_what_a_person_typed(files):
    own = distill_form.FORM | DistillConfig().to_dict() | {"prompts": "a cat", "name": "cats"}
    demo = chosen(own, EMOJI)
    assert (demo["prompts"], demo["name"], demo["steps"]) == ("a cat", "cats", DEMO["steps"])
    back = chosen(demo, str(files["sd1"]))
    assert (back["prompts"], back["name"], back["steps"]) == ("a cat", "cats", own["steps"])
    by_hand = own | {"steps": 9}
    assert {name: chosen(by_hand, EMOJI)[name] for name in by_hand} == by_hand | {
        "checkpoint": EMOJI
    }


def test_every_setting_has_one_control_with_its_default_and_a_help_text():
    every = controls.controls()
    assert list(every) == [spec.name for spec in dataclasses.fields(DistillConfig)]
    assert all(item.info for item in every.values())
    folded = [item.name for items in controls.advanced().values() for item in items]
    assert sorted([*controls.PLAIN, *folded]) == sorted(every)
    values = {name: item.default for name, item in every.items()}
    assert controls.config_of(values) == DistillConfig()


def test_help_texts_name_the_defaults():
    assert f"{DistillConfig().steps} is" in controls.INFO["steps"]
    assert f"{DistillConfig().student_rank} suits" in controls.INFO["student_rank"]


def test_a_group_of_advanced_settings_fits_a_screen():
    """Five rows of three are 750 of 1000 pixels, with labels and help texts."""
    assert max(len(items) for items in controls.advanced().values()) <= 15


@pytest.mark.parametrize(
    ("changed", "part", "message"),
    [
        ({"checkpoint": "/etc/passwd"}, "checkpoint", "outside the folders"),
        ({"checkpoint": "../../../etc/passwd"}, "checkpoint", "outside the folders"),
        ({"checkpoint": r"\\server\share\model.safetensors"}, "checkpoint", "model.safetensors"),
        ({"checkpoint": ""}, "checkpoint", "No file was named"),
        ({"t5": "/etc/shadow"}, "checkpoint", "outside the folders"),
        ({"prompts": " \n# nothing\n"}, "prompts", "no prompts"),
        ({"prompts": "a cat\x00"}, "prompts", "control characters"),
        ({"steps": 0}, "settings", "Training updates is 0"),
        ({"steps": None}, "settings", "Training updates is empty"),
        ({"student_lr": "fast"}, "settings", "Learning rate of the student"),
        ({"resolution": "big"}, "settings", "not understood"),
        ({"num_anchored_steps": 4}, "settings", "at most 3"),
        ({"teacher_loras": ["/etc/passwd"]}, "loras", "outside the folders"),
        ({"name": "../../evil"}, "output", "without /"),
        ({"name": ""}, "output", "Name the LoRA"),
        ({"output_folder": "//server/share"}, "output", "network address"),
        ({"output_folder": "relative"}, "output", "not a whole path"),
    ],
)
def test_a_mistake_is_named_at_its_control_and_nothing_typed_is_lost(form, changed, part, message):
    answer = distill_form.submit(form | changed)
    assert message in text_of(answer[f"{part}_note"])
    assert 'role="alert"' in answer[f"{part}_note"]
    assert distill_form.PLACES[part] in text_of(answer["start_note"])
    others = [name for name in distill_form.PLACES if name != part]
    assert [answer[f"{name}_note"] for name in others] == [""] * len(others)
    assert set(answer) == {f"{name}_note" for name in distill_form.NOTES}
    assert jobs.all_jobs() == []


def test_a_link_out_of_a_folder_is_refused(form, tmp_path, files):
    folder = tmp_path / "models"
    folder.mkdir()
    try:
        (folder / "link.safetensors").symlink_to(files["sd1"])
    except OSError:
        pytest.skip("no links here")
    assert "1 checkpoints" not in distill_hints.add_folder({"new_folder": str(folder)})
    answer = distill_form.submit(form | {"checkpoint": str(folder / "link.safetensors")})
    assert "outside the folders" in text_of(answer["checkpoint_note"])


def test_a_folder_that_is_added_is_listed_searched_and_remembered(files):
    answer = distill_hints.add_folder({"new_folder": str(files["sd1"].parent)})
    assert "Found 3 checkpoints and 0 LoRAs" in text_of(answer["folder_note"])
    paths = [path for _, path in answer["checkpoint"]["choices"]]
    assert paths[-1] == str(sources.ASSETS / "emoji-sd1.safetensors")  # the demos come last
    assert {Path(path).name for path in paths[:3]} == {f"{n}.safetensors" for n in files}
    assert preferences.load().folders == (str(files["sd1"].parent.resolve()),)
    assert distill_hints.forget_folder({"folder": str(files["sd1"].parent.resolve())})
    assert preferences.load().folders == ()
    for wrong in ("", "nowhere", "/no/such/folder", "\\\\server\\share"):
        assert 'role="alert"' in distill_hints.add_folder({"new_folder": wrong})["folder_note"]


def test_what_was_detected_is_said_and_presets_suit_it(files):
    preferences.remember(folders=(str(files["sd1"].parent),))
    answer = distill_hints.describe_checkpoint({"checkpoint": str(files["sdxl"]), "memory": "6gb"})
    assert "SDXL" in text_of(answer["detected"]) and "eps" in text_of(answer["detected"])
    assert [value for _, value in answer["memory"]["choices"]] == [
        "keep",
        "8gb",
        "12gb",
        "16gb",
        "24gb",
    ]
    assert answer["memory"]["value"] == "keep"  # there is no such preset for SDXL
    values = {"checkpoint": str(files["sdxl"]), "memory": "12gb"}
    settings = distill_form.apply_preset(values)
    assert settings["gradient_checkpointing"] is True and settings["offload_optimizer"] is True
    larger = distill_form.apply_preset(values | {"memory": "24gb"})
    assert (larger["batch_size"], larger["micro_batch_size"]) == (8, 1)
    assert not larger.get("gradient_checkpointing")


def test_prompts_are_counted_and_shown_as_the_model_reads_them():
    text = "\n".join(f"a {{red|blue}} cat {number} <lora:x:1>" for number in range(40))
    answer = distill_hints.describe_prompts({"prompts": text, "evaluation_prompts": 6})
    assert "40 prompts; 6 of them are held out" in text_of(answer["prompts_count"])
    assert re.findall(r"<li>a (?:red|blue) cat \d+</li>", answer["examples"])
    assert "LoRA tags were dropped" in answer["examples"] and "{" not in answer["examples"]
    few = distill_hints.describe_prompts({"prompts": "a\nb", "evaluation_prompts": 6})
    assert "none is held out" in text_of(few["prompts_count"])
    bad = distill_hints.describe_prompts({"prompts": "a {0::x|0::y} cat", "evaluation_prompts": 6})
    assert 'role="alert"' in bad["prompts_note"]


def test_prompts_with_markup_are_shown_as_text():
    answer = distill_hints.describe_prompts({"prompts": HOSTILE, "evaluation_prompts": 6})
    assert "<img" not in answer["examples"] and "&lt;img" in answer["examples"]


@pytest.mark.parametrize("name", [value for _, value in sources.STARTERS])
def test_starter_prompts_fill_the_form(name):
    answer = distill_hints.apply_starter({"starter": name, "evaluation_prompts": 6})
    assert len(answer["prompts"].splitlines()) >= 90
    assert "6 of them are held out" in text_of(answer["prompts_count"])


def test_prompts_come_from_uploads_and_from_named_folders_alone(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("a cat\na dog\n", encoding="utf-8")
    outside = distill_hints.read_prompt_source({"prompts_path": str(file)})
    assert "outside the folders" in text_of(outside["prompts_note"]) and "prompts" not in outside
    uploaded = distill_hints.read_prompt_source({"prompts_upload": str(file)})
    assert uploaded["prompts"] == "a cat\na dog\n"
    sources.add_folder(str(tmp_path))
    assert distill_hints.read_prompt_source({"prompts_path": str(file)})["prompts"] == (
        "a cat\na dog\n"
    )


def test_a_prompt_that_begins_like_a_comment_reaches_the_form_and_is_never_lost_unsaid(tmp_path):
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", "#1 fan art\nSteps: 4, Sampler: Euler, Seed: 1")
    (tmp_path / "made").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "made" / "a.png", pnginfo=info)
    (tmp_path / "prompts.txt").write_text("#2 fan art\na cat\n", encoding="utf-8")
    sources.add_folder(str(tmp_path))
    answer = distill_hints.read_prompt_source({"prompts_path": str(tmp_path / "made")})
    assert answer["prompts"] == "\\#1 fan art\n"
    assert distill_form.prompts_of(answer).prompts == ("#1 fan art",)
    assert "1 images read, 1 with a prompt" in text_of(answer["examples"])
    answer = distill_hints.read_prompt_source({"prompts_path": str(tmp_path / "prompts.txt")})
    assert answer["prompts"] == "a cat\n"
    typed = distill_hints.describe_prompts({"prompts": "#2 fan art\na cat"})
    for shown in (answer, typed):
        assert "1 lines that begin with # were left out" in text_of(shown["examples"])
        assert "#2 fan art" in text_of(shown["examples"])


def test_settings_travel_through_a_file(form, tmp_path):
    answer = distill_form.export(form | {"steps": 77})
    path = Path(answer["settings_download"]["value"])
    text = path.read_text(encoding="utf-8")
    assert str(Path(EMOJI).parent) not in text and "a shape" not in text
    taken = distill_form.apply_settings({"settings_upload": str(path)})
    assert taken["steps"] == 77 and "now in the form" in taken["import_note"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (gzip.compress(b"0" * 10_000_000), "compressed"),
        (b"{" * 300_000, "bytes"),
        (b"[" * 1000, "settings"),
        (b'{"kind": "dpdmd.settings", "version": 1, "config": {"steps": "<b>"}}', "steps"),
        (config_text(DistillConfig()).replace('"seed"', '"sed"').encode(), "does not know: sed"),
    ],
)
def test_hostile_settings_files_are_refused_in_the_form(tmp_path, content, message):
    path = tmp_path / "settings.json"
    path.write_bytes(content)
    answer = distill_form.apply_settings({"settings_upload": str(path)})
    assert message in text_of(answer["import_note"]) and "<b>" not in answer["import_note"]
    assert "steps" not in answer


def test_the_form_is_remembered_and_a_damaged_memory_is_not(form):
    distill_form.submit(form | {"steps": 55, "name": "again", "output_folder": ""})
    assert distill_form.initial()["steps"] == 55
    kept = dict(preferences.load().distill)
    preferences.remember(distill=kept | {"steps": "many"})
    assert distill_form.initial()["steps"] == DistillConfig().steps


def test_a_name_that_is_taken_is_numbered(form, home):
    (home / "loras").mkdir(parents=True)
    (home / "loras" / "emoji-4step.safetensors").write_bytes(tiny_lora())
    assert distill_form.initial()["name"] == "emoji-4step-2"
    assert "exists" in text_of(distill_form.submit(form)["output_note"])


def test_a_message_goes_when_the_job_has_become_another(run):
    seen = runs_view.refresh(run.id, {})["seen"]
    finish(run)
    kept = runs_view.refresh(run.id, seen, keep_message=True)
    assert "message" not in kept
    assert runs_view.refresh(run.id, seen)["message"] == ""
    assert "message" not in runs_view.refresh(run.id, kept["seen"])


def test_the_page_opens_when_remembered_files_are_gone(form):
    distill_form.remember(form | {"checkpoint": "/gone/model.safetensors"})
    opened = distill_hints.opening()
    assert 'role="alert"' in opened["checkpoint_note"] and opened["detected"] == ""
    assert opened["checkpoint"]["value"] == "/gone/model.safetensors"


def test_a_file_in_8_bit_needs_what_one_in_16_bit_does(form, tmp_path, monkeypatch):
    """The network is trained in 16 bit, however the file stores it."""
    tensors = load_file(EMOJI)
    packed = {n: t.to(torch.float8_e4m3fn) if t.is_floating_point() else t
              for n, t in tensors.items()}  # fmt: skip
    save_file(packed, tmp_path / "packed.safetensors")
    half = bytes_in_16_bit(Path(EMOJI))
    assert half == bytes_in_16_bit(tmp_path / "packed.safetensors")
    assert half == 2 * sum(tensor.numel() for tensor in tensors.values())
    asked = []
    note = lambda *_, half_bytes: asked.append(half_bytes)  # noqa: E731
    monkeypatch.setattr("dpdmd_studio.app.estimate.estimate", note)
    with pytest.raises(AttributeError):  # of the answer, which is none here
        distill_hints.describe_cost(form | {"checkpoint": EMOJI})
    assert asked == [half]


def test_an_estimate_says_what_it_rests_on(form):
    answer = distill_hints.describe_cost(form)
    assert "not known" in text_of(answer["estimate"]) and answer["settings_note"] == ""
    wrong = distill_hints.describe_cost(form | {"steps": -1})
    assert wrong["estimate"] == "" and "Training updates" in wrong["settings_note"]


# Runs


@pytest.mark.parametrize(
    ("command_line", "page"),
    [
        ("give --clip-l FILE --clip-g FILE, or",
         "fill in “CLIP-L text encoder” and “CLIP-G text encoder”, or"),
        ("Lower --anchor-step or raise --teacher-steps.",
         "Lower “Anchor step (K)” or raise “Steps of the teacher”."),
        ("Choose --dtype float32", "Choose “Data type” float32"),
        ("take the --preset of a smaller card, or lower --resolution.",
         "take the “Memory of your graphics card” of a smaller card, or lower “Resolution "
         "(pixels)”."),
        ("Add `--overwrite` to", "Add `--overwrite` to"),
        ("a -- b --", "a -- b --"),
    ],
)  # fmt: skip
def test_options_are_called_what_their_controls_are(command_line, page):
    assert in_page_words(command_line) == page


def test_pages_speak_of_their_controls(form, run, files, tmp_path):
    wrong = distill_hints.describe_cost(form | {"anchor_step": 40, "teacher_steps": 20})
    assert "Lower “Anchor step (K)”" in text_of(wrong["settings_note"])
    checked = {"name": "Format", "found": "NaN", "verdict": "red", "advice": "Choose --dtype x."}
    job = dataclasses.replace(run, kind="check", result={"lines": [checked], "table": "--dtype"})
    shown = run_pieces.check(job)
    assert "Choose “Data type” x." in text_of(shown) and 'data-copy="--dtype"' in shown
    failed = dataclasses.replace(run, state="failed", message="Lower --student-rank.")
    assert "Lower “LoRA rank”." in text_of(run_pieces.status(failed))
    other = dataclasses.replace(failed, kind="compare", message="Lower --batch-size.")
    assert "Lower --batch-size." in text_of(run_pieces.status(other))


def finish(job: jobs.Job, **progress) -> Path:
    """Make the job look like one that went on, without training."""
    facts = {"status": "stopped", "step": 54, "steps": 200, "seconds_per_step": 2.0} | progress
    (job.path / "progress.json").write_text(json.dumps(facts), encoding="utf-8")
    (job.path / "queued").unlink(missing_ok=True)
    lora = job.path.parents[1] / "loras" / f"{job.title}.safetensors"
    lora.parent.mkdir(exist_ok=True)
    lora.write_bytes(tiny_lora())
    facts = {"lora": str(lora), "step": 54, "kept_step": 54}
    (job.path / "result.json").write_text(json.dumps(facts), encoding="utf-8")
    return lora


def test_the_list_shows_every_job_what_waits_first(run, form):
    finish(run)
    second = jobs.get_job(distill_form.submit(form | {"name": "second"})["selected"])
    answer = runs_view.refresh("", {})
    listed = answer["list"]["value"]
    assert re.findall(r'data-job="([^"]+)"', listed) == [second.id, run.id]
    assert 'data-live="1"' in listed and "Stopped · 27%" in listed and "place 1" in listed
    assert answer["selected"] == second.id


def test_only_what_changed_is_sent_again(run):
    first = runs_view.refresh(run.id, {})
    assert set(runs_view.PIECES) <= set(first)
    again = runs_view.refresh(run.id, first["seen"])
    assert set(again) == {"selected", "seen"}
    finish(run)
    changed = runs_view.refresh(run.id, again["seen"])
    assert "status" in changed and "start" in changed and "images" not in changed
    (run.path / "previews" / "teacher.png").write_bytes(PNG)
    assert "images" in runs_view.refresh(run.id, changed["seen"])


def test_a_run_with_a_lora_can_be_shared(run):
    assert runs_view.refresh(run.id, {})["share"]["visible"] is False
    finish(run)
    assert runs_view.refresh(run.id, {})["share"]["visible"] is True
    shown = share_page.of_run({"selected": run.id, "checkpoint": "another.safetensors"})
    assert shown["tabs"]["selected"] == "share" and shown["name"] == run.title
    assert shown["source"]["value"] == f"run:{run.id}"
    assert shown["checkpoint"]["value"] == str(run_checkpoint(run))


def run_checkpoint(run: jobs.Job) -> str:
    return json.loads((run.path / "settings.json").read_text())["model"]["checkpoint"]


def test_a_run_shows_progress_pictures_curves_and_its_files(run):
    lora = finish(run, status="running")
    for name in ("teacher", "step-00000010", "step-00000050"):
        (run.path / "previews" / f"{name}.png").write_bytes(PNG)
    lines = [{"step": step, "seconds": 2.0, "diversity_loss": 1 / step} for step in range(1, 51)]
    kept = {"step": 50, "diversity_kept": 0.93, "teacher_distance": 0.02, "distances": [0.02]}
    for name, rows in (("metrics.jsonl", lines), ("evaluations.jsonl", [kept])):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (run.path / name).write_text(text, encoding="utf-8")
    answer = runs_view.refresh(run.id, {})
    assert 'aria-valuenow="27"' in answer["status"]["value"]
    assert "54 of 200 updates" in text_of(answer["status"]["value"])
    shown = answer["images"]["value"]
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", shown)
    assert captions == ["Teacher, all its steps", "Student after update 50",
                        "Student after update 10"]  # fmt: skip
    assert shown.count("data:image/png;base64,iVBORw0KGgo") == 3
    assert "93% of the teacher" in answer["findings"]["value"]
    assert "Diversity loss" in answer["curves"]["value"] and "<svg" in answer["curves"]["value"]
    assert str(lora) in answer["files"]["value"] and answer["more_box"]["visible"]


def test_buttons_offer_only_what_can_be_done(run, form):
    def offered(answer: dict) -> set[str]:
        return {name for name in runs_view.BUTTONS if answer[name]["visible"]}

    assert offered(runs_view.refresh(run.id, {})) == {"stop", "duplicate", "delete"}
    later = jobs.get_job(distill_form.submit(form | {"name": "later"})["selected"])
    assert "up" in offered(runs_view.refresh(later.id, {}))
    assert "down" in offered(runs_view.refresh(run.id, {}))
    finish(run)
    answer = runs_view.refresh(run.id, {})
    assert offered(answer) == {"start", "duplicate", "delete"}
    assert answer["start"]["value"] == "Resume"


def test_buttons_do_what_they_say(run, form):
    later = distill_form.submit(form | {"name": "later"})["selected"]
    runs_view.act("up", later)
    assert jobs.get_job(later).place == 0 and jobs.get_job(run.id).place == 1
    runs_view.act("stop", later)
    assert jobs.get_job(later).state == "new"
    runs_view.act("start", later)
    assert jobs.get_job(later).state == "queued"
    copy = runs_view.act("duplicate", run.id)["selected"]
    assert jobs.get_job(copy).state == "new" and copy != run.id
    runs_view.act("rename", copy, HOSTILE)
    assert jobs.get_job(copy).title.startswith("<img")
    runs_view.act("delete", copy)
    assert copy not in [job.id for job in jobs.all_jobs()]
    (name,) = runs_view.trash()
    assert runs_view.act("restore", copy, name)["selected"] == copy


@pytest.mark.parametrize("action", ["start", "stop", "duplicate", "rename", "delete", "restore"])
def test_ids_that_name_no_job_are_refused_in_words(action):
    for id in ("", "..", "../..", "/etc", "C:\\x", "a" * 200, "no-such-run", "\x00"):
        answer = runs_view.act(action, id, id)
        assert 'role="alert"' in answer["message"] and "selected" not in answer, id


def test_two_tabs_at_once_are_told_what_became_of_it(run):
    runs_view.act("delete", run.id)
    answer = runs_view.act("stop", run.id)
    assert 'role="alert"' in answer["message"]
    assert runs_view.refresh(run.id, {})["selected"] == ""


def test_names_of_strangers_are_text_and_never_markup(run):
    jobs.rename(run.id, HOSTILE)
    finish(run, status="failed", error=HOSTILE)
    (run.path / "log.txt").write_text(f"{HOSTILE}\n", encoding="utf-8")
    answer = runs_view.refresh(run.id, {})
    for name in ("list", "status", "files", "log"):
        assert "<img" not in answer[name]["value"], name
    assert '<img src=x onerror="alert(1)">' in unescape(text_of(answer["status"]["value"]))
    found = html.findings([Finding("problem", HOSTILE, HOSTILE)])
    assert "<img" not in found and found.count("&lt;img") == 2
    assert "<img" not in html.copyable(HOSTILE, HOSTILE) + html.facts({HOSTILE: HOSTILE})


def test_a_damaged_folder_costs_no_page(home, run):
    (home / "runs" / "broken").mkdir()
    (run.path / "metrics.jsonl").write_text('7\n[]\n{"step": "x"}\n{"st', encoding="utf-8")
    (run.path / "evaluations.jsonl").write_text('{"step": NaN}\nnull\n', encoding="utf-8")
    assert runs_view.refresh(run.id, {})["selected"] == run.id
    assert "Failed" in text_of(runs_view.refresh("broken", {})["status"]["value"])


def test_the_report_is_in_the_page_or_at_an_address_without_scripts(run):
    folder = run.path / "report"
    folder.mkdir()
    (folder / "report.html").write_text('<p title="x">"hello"</p>', encoding="utf-8")
    inside = runs_view.refresh(run.id, {})["report"]["value"]
    (text,) = re.findall(r'srcdoc="([^"]*)"', inside)
    assert unescape(text) == '<p title="x">"hello"</p>'
    assert 'sandbox="allow-popups"' in inside
    linked = runs_view.refresh(run.id, {}, lambda job: f"/report/{job.id}")["report"]["value"]
    assert f'src="/report/{run.id}"' in linked and "srcdoc" not in linked


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.25, "0.2 s"), (40, "40 s"), (600, "10 min"), (12_000, "3 h 20 min"), (187_200, "2 d 4 h"),
     (None, ""), (float("nan"), ""), (-1, "")],
)  # fmt: skip
def test_durations_have_units(seconds, text):
    assert html.duration(seconds) == text


# Check


def test_a_check_is_queued_with_what_the_form_holds(form, home):
    values = form | {"prompts": "", "output_folder": "/nowhere/at/all", "name": ""}
    answer = distill_form.check(values)
    job = jobs.get_job(answer["selected"])
    assert (job.kind, job.state) == ("check", "queued") and answer["tabs"]["selected"] == "runs"
    assert task(job)[:2] == ["check", values["checkpoint"]]
    settings = import_settings(job.path / "checked-settings.json")
    assert (settings.steps, settings.batch_size) == (values["steps"], values["batch_size"])
    assert not any(word.startswith("--prompts") for word in task(job))
    named = distill_form.check(values | {"prompts": "a cat\n# no\na dog"})["selected"]
    assert (jobs.get_job(named).path / "prompts.txt").read_text() == "a cat\na dog\n"
    wrong = distill_form.check(values | {"steps": 0})
    assert "selected" not in wrong and 'role="alert"' in wrong["settings_note"]


def test_a_finished_check_shows_its_verdicts_its_images_and_the_table_to_paste(form, home):
    job = jobs.get_job(distill_form.check(form)["selected"])
    assert runs_view.refresh(job.id, {})["check"] == {"value": "", "visible": False}
    folder = home / "checks" / "shapes-0123456789"
    folder.mkdir(parents=True)
    (folder / "teacher.png").write_bytes(PNG)
    lines = [
        {"name": "Teacher's picture", "found": HOSTILE, "verdict": "red", "advice": "Do it."},
        {"name": "Time", "found": "2 s an update", "verdict": "green", "advice": ""},
        {"name": "Odd", "found": 3, "verdict": "green", "advice": ""},
        {"name": "Odd", "found": "", "verdict": "blue", "advice": ""},
    ]
    result = {"folder": str(folder), "lines": [*lines, None], "table": f"| a |\n{HOSTILE}"}
    finish_task(job, result)
    answer = runs_view.refresh(job.id, {})
    shown = answer["check"]["value"]
    assert re.findall(r"dp-verdict dp-([a-z-]+)", shown) == ["red", "green"]
    assert "<img" not in shown and "Do it." in shown
    (text,) = re.findall(r'data-copy="([^"]*)"', shown)
    assert unescape(text) == result["table"]
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", answer["images"]["value"])
    assert captions == ["Teacher, guided, all its steps"]
    assert not answer["duplicate"]["visible"] and answer["delete"]["visible"]
    finish_task(job, result | {"folder": str(home)})  # no place of a check
    (home / "teacher.png").write_bytes(PNG)
    assert runs_view.refresh(job.id, {})["images"]["value"] == ""


def finish_task(job: jobs.Job, result: dict) -> None:
    (job.path / "queued").unlink(missing_ok=True)
    note = {"code": 0, "message": "", "stopped": False, "at": 1.0}
    (job.path / "exit.json").write_text(json.dumps(note), encoding="utf-8")
    (job.path / "output.txt").write_text(json.dumps(result) + "\n", encoding="utf-8")


# Diversity


@pytest.mark.parametrize(("kept", "odd"), [(0.4, False), (1.1, False), (1.64, True)])
def test_more_diversity_than_the_teachers_is_no_success(kept, odd):
    meter = html.diversity_meter(kept, 20)
    assert ("dp-odd" in meter) is odd and ("noise or broken images" in meter) is odd
    assert f"{kept:.0%}" in meter


# Compare


def test_a_comparison_becomes_the_command_that_a_terminal_would_run(run):
    lora = finish(run)
    values = compare_form.initial() | {
        "loras": [str(lora)],
        "strengths": "0.8",
        "seeds": "0-2",
        "teacher_steps": "20",
        "guidance_scale": "2.5",
        "baseline": False,
        "prompts": "a cat\n# not this\na dog\n\\#1 fan",
        "title": HOSTILE,
    }
    job = jobs.get_job(compare_form.submit(values)["selected"])
    words = task(job)
    output = Path(words[words.index("--output") + 1])
    assert words == [
        "compare", EMOJI, f"--lora={lora}:0.8", "--seeds=0-2", "--teacher-steps=20",
        "--guidance-scale=2.5", "--no-rival", f"--prompts={output / 'prompts.txt'}",
        "--output", str(output), "--json",
    ]  # fmt: skip
    assert (output / "prompts.txt").read_text(encoding="utf-8") == "a cat\na dog\n\\#1 fan\n"
    assert job.title.startswith("<img")
    assert "<img" not in compare_form.show(job.id)["report"]


@pytest.mark.parametrize(
    ("changed", "part", "message"),
    [
        ({"loras": []}, "models", "at least one"),
        ({"loras": ["/etc/passwd"]}, "models", "outside the folders"),
        ({"checkpoint": "/etc/passwd"}, "models", "outside the folders"),
        ({"strengths": "1, 2"}, "models", "2 strengths for 1 LoRAs"),
        ({"strengths": "strong"}, "models", "numbers such as"),
        ({"seeds": "--output=/etc"}, "settings", "not understood"),
        ({"resolution": "x"}, "settings", "not understood"),
        ({"teacher_steps": "-5"}, "settings", "above 0"),
        ({"guidance_scale": "nan"}, "settings", "above 0"),
        ({"prompts": "\x00"}, "prompts", "control characters"),
    ],
)
def test_mistakes_of_a_comparison_are_named_at_their_control(run, changed, part, message):
    lora = finish(run)
    answer = compare_form.submit(compare_form.initial() | {"loras": [str(lora)]} | changed)
    assert message in text_of(answer[f"{part}_note"]) and "selected" not in answer


def made_for(path: Path, family: str, prediction: str, teacher: str = "") -> str:
    """A LoRA with a recipe for that kind of checkpoint."""
    recipe = dataclasses.replace(default_recipe(family, prediction), teacher_name=teacher)
    path.parent.mkdir(parents=True, exist_ok=True)
    told = {METADATA_KEY: recipe.to_json()}
    save_file({"lora_unet_x.lora_down.weight": torch.zeros(1, 1)}, path, told)
    return str(path)


def test_a_comparison_opens_with_a_pair_that_fits(home):
    other = EMOJI_EPS
    folder = home / "loras"
    assert compare_form.first_pair([]) == {"checkpoint": EMOJI, "loras": []}
    xl = made_for(folder / "xl.safetensors", "sdxl", "eps")
    plain = str(folder / "plain.safetensors")
    Path(plain).write_bytes(tiny_lora())
    none = [("xl", xl), ("plain", plain), ("gone", str(folder / "gone.safetensors"))]
    assert compare_form.first_pair(none) == {"checkpoint": EMOJI, "loras": []}
    eps = made_for(folder / "eps.safetensors", "sd1", "eps")
    pair = compare_form.first_pair([*none, ("eps", eps)])
    assert pair == {"checkpoint": other, "loras": [eps]}
    opened = compare_page.opening({}, None)
    assert (opened["checkpoint"]["value"], opened["loras"]["value"]) == (other, [eps])


def test_a_pair_that_cannot_be_is_refused_as_soon_as_it_is_chosen(home):
    eps = made_for(home / "loras" / "eps.safetensors", "sd1", "eps")
    values = compare_form.initial() | {"loras": [eps], "prompts": "a cat"}
    said = text_of(compare_form.look_at_pair(values)["models_note"])
    assert "eps.safetensors was made for SD 1.x of eps-prediction; this checkpoint is SD3" in said
    assert said == text_of(compare_form.submit(values)["models_note"])
    fits = values | {"checkpoint": EMOJI_EPS}
    assert compare_form.look_at_pair(fits) == {"models_note": ""}


# Share


def test_a_package_becomes_the_command_that_a_terminal_would_run(run, home):
    finish(run)
    values = share_form.FORM | share_form.describe({"source": f"run:{run.id}"})
    values |= {"source": f"run:{run.id}", "author": "-x --y", "count": 7.0, "base_model": "Other"}
    assert values["name"] == "emoji-4step" and values["checkpoint"] == EMOJI
    answer = share_form.submit(values)
    words = task(jobs.get_job(answer["selected"]))
    assert words == [
        "package", str(run.path), EMOJI, "--name=emoji-4step", "--author=-x --y",
        "--base-model=Other", "--count=7", "--output", str(home / "packages" / "emoji-4step"),
        "--json",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "part", "message"),
    [
        ({"source": ""}, "source", "Choose a run"),
        ({"source": "run:../.."}, "source", ""),
        ({"source": "/etc/passwd"}, "source", "outside the folders"),
        ({"checkpoint": "/etc/passwd"}, "source", "outside the folders"),
        ({"name": ""}, "words", "Give it a name"),
        ({"author": "a\nb"}, "words", "on one line"),
        ({"count": 3}, "words", "from 6 to 24"),
        ({"prompts": "\x01"}, "prompts", "control characters"),
    ],
)
def test_mistakes_of_a_package_are_named_at_their_control(run, changed, part, message):
    finish(run)
    values = share_form.FORM | {"source": f"run:{run.id}", "name": "x"} | changed
    answer = share_form.submit(values)
    assert 'role="alert"' in answer[f"{part}_note"] and message in text_of(answer[f"{part}_note"])
    assert "selected" not in answer


def test_a_finished_package_shows_its_folder_zip_cover_and_description(run, home):
    finish(run)
    values = share_form.FORM | {"source": f"run:{run.id}", "name": "x"}
    job = jobs.get_job(share_form.submit(values)["selected"])
    folder = home / "packages" / "x"
    folder.mkdir(parents=True)
    (folder / "cover.png").write_bytes(PNG)
    (folder / "description.html").write_text("<script>alert(1)</script>", encoding="utf-8")
    (folder.parent / "x.zip").write_bytes(b"PK")
    made = {"folder": str(folder), "zip": f"{folder}.zip", "cover": str(folder / "cover.png")}
    (job.path / "output.txt").write_text(json.dumps(made) + "\n", encoding="utf-8")
    note = {"code": 0, "at": 9e9, "message": "", "stopped": False}
    (job.path / "exit.json").write_text(json.dumps(note), encoding="utf-8")
    (job.path / "queued").unlink()
    shown = share_form.show(job.id)
    assert shown["zip"] == {"value": f"{folder}.zip", "visible": True}
    assert str(folder) in shown["package"] and "data:image/png" in shown["package"]
    assert "<script>" not in shown["description"]["value"]
    assert 'sandbox="allow-popups"' in shown["description"]["value"]


def test_usage_is_read_off_the_lora_and_a_damaged_one_shows_none(run, files):
    lora = finish(run)
    lora.write_bytes(files["sd1"].read_bytes()[:100])
    assert "Sample with it" not in run_pieces.files(jobs.get_job(run.id))


def test_paths_that_are_none_raise_no_more_than_our_errors():
    for text in ("\x00", "a" * 10_000, "NUL" if os.name == "nt" else "\x1f"):
        with pytest.raises((SettingsError, DPDMDError)):
            sources.model_path(text)
