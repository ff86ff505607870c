"""Distillation end to end on tiny checkpoints of all families: the worker's whole job."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from dpdmd_studio.app.config import distill_config as config
from dpdmd_studio.app.runs.directory import RunDirectory
from dpdmd_studio.cli import main
from dpdmd_studio.core.errors import NonFiniteError, OutputError, RunError
from dpdmd_studio.core.lora.file import lora_deltas, merge_lora, parameter_shapes, read_lora
from dpdmd_studio.trainer.commands import distill as runner
from dpdmd_studio.trainer.commands.open_session import open_session
from dpdmd_studio.trainer.loading.checkpoint import open_checkpoint
from safetensors.torch import load_file
from tiny_runs import (
    BUILDERS,
    PROMPTS,
    TINY,
    distil,
    final_state,
    metrics_of,
    new_run,
    request_stop,
)

pytestmark = pytest.mark.usefixtures("home")
QUICKEST = "sd3"
"""The family for what has to do with none: its tiny network takes half as long as the others'."""


@pytest.fixture(scope="module")
def uninterrupted(files, tmp_path_factory):
    """Runs that nothing disturbed, by their settings; others are compared with them."""
    done: dict[tuple[str, bool], RunDirectory] = {}

    def run_of(family: str, *, share: bool) -> RunDirectory:
        if (family, share) not in done:
            folder = tmp_path_factory.mktemp("uninterrupted")
            done[family, share] = new_run(folder, files[family], share_rollouts=share)
            distil(done[family, share])
        return done[family, share]

    return run_of


@pytest.mark.parametrize("name", BUILDERS)
def test_every_family_distils_and_the_lora_is_the_student(name, files, tmp_path):
    run = new_run(tmp_path, files[name], ema_decay=0.0)
    outcome = distil(run)
    assert outcome.finished and outcome.step == 4
    lora = read_lora(outcome.lora)
    recipe = lora.recipe
    assert recipe.num_steps == 4 and recipe.family == name
    # merged into a fresh copy of the checkpoint, the file gives the adapter's own predictions
    plain = open_checkpoint(files[name], dtype=torch.float32, device="cpu").load()
    deltas = lora_deltas(lora, plain.family, plain.config, parameter_shapes(plain.network))
    session = outcome.session
    x = torch.randn(1, plain.detection.latent_channels, 4, 4)
    condition = next(iter(session.encoded.values()))
    timestep = torch.tensor([500.0])
    session.roles.use("student")
    with torch.no_grad():
        student = session.call(x, timestep, condition)
        teacher = plain.call()(x, timestep, condition)
        merge_lora(plain.network, deltas)
        merged = plain.call()(x, timestep, condition)
    change = float((student - teacher).abs().max())
    assert change > 1e-4
    assert float((merged - student).abs().max()) < 0.05 * change  # fp16 rounding of the LoRA alone


@pytest.mark.parametrize("share", [False, True])
def test_a_stopped_and_resumed_run_equals_an_uninterrupted_one(
    files, tmp_path, uninterrupted, share
):
    whole = uninterrupted("sd1", share=share)
    parts = new_run(tmp_path / "parts", files["sd1"], share_rollouts=share)

    def stop_after_first(progress):
        if progress.step == 1:
            request_stop(parts)

    stopped = distil(parts, stop_after_first)
    assert not stopped.finished and stopped.step == 1
    assert read_lora(stopped.lora).recipe is not None  # what there is, is a loadable LoRA
    resumed = distil(parts)
    assert resumed.finished
    expected, found = final_state(whole), final_state(parts)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[key], found[key]) for key in expected)
    assert metrics_of(whole) == metrics_of(parts)
    ours, theirs = (load_file(o.lora) for o in (resumed, stopped))
    assert ours.keys() == theirs.keys()


class Killed(BaseException):
    """Stands for a process that ends without a chance to clean up."""


@pytest.mark.parametrize("place", ["start", "student", "fake", "between", "saving"])
def test_a_run_killed_anywhere_resumes_exactly(files, tmp_path, monkeypatch, uninterrupted, place):
    whole = uninterrupted(QUICKEST, share=False)
    run = new_run(tmp_path / "killed", files[QUICKEST], share_rollouts=False)
    from dpdmd_studio.trainer.training import gradients, state, trainer

    calls = {"count": 0}

    def die_at(count, original):
        def replacement(*arguments, **named):
            calls["count"] += 1
            if calls["count"] == count:
                raise Killed
            return original(*arguments, **named)

        return replacement

    with monkeypatch.context() as patch:
        if place == "start":  # one line of metrics, no state yet
            patch.setattr(gradients, "student_update", die_at(2, gradients.student_update))
        elif place == "student":
            patch.setattr(gradients, "student_update", die_at(4, gradients.student_update))
        elif place == "fake":
            patch.setattr(gradients, "fake_update", die_at(6, gradients.fake_update))
        elif place == "between":
            patch.setattr(RunDirectory, "append_metrics", die_at(3, RunDirectory.append_metrics))
        else:
            patch.setattr(state, "save_file", die_at(7, state.save_file))
            assert trainer.save_state is state.save_state
        with pytest.raises(Killed):
            distil(run)
    assert distil(run).finished
    expected, found = final_state(whole), final_state(run)
    assert all(torch.equal(expected[key], found[key]) for key in expected)
    assert metrics_of(whole) == metrics_of(run)


def test_resuming_with_changed_settings_is_refused(files, tmp_path):
    run = new_run(tmp_path, files[QUICKEST], steps=1)
    distil(run)
    settings = run.settings()
    settings["config"]["student_lr"] = 5e-3
    run.write_json("settings.json", settings)
    with pytest.raises(RunError, match="other settings"):
        distil(run)


def test_a_run_of_an_earlier_version_with_its_base_shared_out_goes_on(files, tmp_path, caplog):
    config._say.cache_clear()
    straight = new_run(tmp_path / "straight", files["sd3"], steps=2)
    distil(straight)
    run = new_run(tmp_path / "run", files["sd3"], steps=2)
    settings = run.settings()
    settings["config"]["shard_base"] = True
    run.write_json("settings.json", settings)
    distil(run, lambda progress: request_stop(run) if progress.step == 1 else None)
    assert distil(run).finished
    assert metrics_of(run) == metrics_of(straight)
    assert "shard_base no longer exists" in caplog.text


def test_a_checkpoint_that_was_moved_is_named_at_resume(files, tmp_path, capsys):
    before, now = tmp_path / "before.safetensors", tmp_path / "now.safetensors"
    shutil.copy(files[QUICKEST], before)
    run = new_run(tmp_path, before, steps=1)
    before.rename(now)
    assert main(["resume", str(run.path)]) == 2
    assert "before.safetensors" in capsys.readouterr().err
    assert main(["resume", str(run.path), "--checkpoint", str(tmp_path / "typo")]) == 2
    assert "typo" in capsys.readouterr().err
    assert main(["resume", str(run.path), "--checkpoint", str(now)]) == 0
    assert main(["resume", str(run.path), "--checkpoint", str(files["sdxl"])]) == 2
    assert "another checkpoint" in capsys.readouterr().err


def test_a_run_in_use_is_refused(files, tmp_path):
    run = new_run(tmp_path, files[QUICKEST])
    with run.lock(), pytest.raises(RunError, match="in use by process"):
        distil(run)


def test_a_gradient_that_is_not_finite_stops_and_keeps_the_last_state(files, tmp_path, monkeypatch):
    from dpdmd_studio.trainer.method import equations as losses

    run = new_run(tmp_path, files[QUICKEST])
    original, calls = losses.dmd_loss, []

    def poisoned(x0, gradient):
        calls.append(1)
        loss = original(x0, gradient)
        return loss * float("nan") if len(calls) == 3 else loss

    monkeypatch.setattr(losses, "dmd_loss", poisoned)
    with pytest.raises(NonFiniteError, match="Update 3: the student's gradient"):
        distil(run)
    assert run.latest_state().name == "step-00000002"
    assert run.read_json("progress.json")["status"] == "failed"


def test_the_head_start_trains_the_fake_score_alone(files, tmp_path):
    run = new_run(tmp_path, files["sd1"], fake_head_start=3)
    session = open_session(run)
    before = {role: session.roles.state(role) for role in ("student", "fake")}
    session.trainer.head_start()
    after = {role: session.roles.state(role) for role in ("student", "fake")}
    assert all(torch.equal(before["student"][k], after["student"][k]) for k in before["student"])
    assert any(not torch.equal(before["fake"][k], after["fake"][k]) for k in before["fake"])


def test_the_average_is_what_is_saved(files, tmp_path):
    outcome = distil(new_run(tmp_path, files["sd1"], ema_decay=0.9))
    folder = trainer_state(outcome)
    last, average = (load_file(folder / f"{n}.safetensors") for n in ("student", "average"))
    assert any(not torch.equal(last[name], average[name]) for name in last)
    lora = read_lora(outcome.lora)
    family, config = outcome.session.checkpoint.family, outcome.session.checkpoint.config
    name = next(n for n in average if n.endswith("to_q.lora_B")).removesuffix(".lora_B")
    pair = lora.pair(lora.modules[family.lora_key(name, config).name.removeprefix("lora_unet_")])
    wanted = average[f"{name}.lora_B"] @ average[f"{name}.lora_A"]
    found = pair.scale * pair.up.float() @ pair.down.float()
    torch.testing.assert_close(found, wanted, rtol=1e-2, atol=1e-2 * float(wanted.abs().max()))


def trainer_state(outcome: runner.Outcome) -> Path:
    return outcome.session.run.latest_state()


def test_previews_show_teacher_and_student(files, tmp_path):
    run = new_run(tmp_path, files[QUICKEST], steps=2, preview_every=1)
    distil(run)
    names = sorted(path.name for path in run.previews.iterdir())
    assert names == ["step-00000001.png", "step-00000002.png", "teacher.png"]


def test_the_command_line_distils_resumes_samples_and_inspects(files, tmp_path, capsys):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS))
    output = tmp_path / "out.safetensors"
    options = [f"--{k.replace('_', '-')}={v}" for k, v in TINY.items()]
    arguments = ["distill", str(files["sd1"]), "--prompts", str(prompts), "--output", str(output)]
    assert main([*arguments, "--run", str(tmp_path / "run"), "--json", *options]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts == {"lora": str(output), "run": str(tmp_path / "run"), "step": 4, "finished": True}
    assert main(["inspect", str(output), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["recipe"]["num_steps"] == 4
    pictures = tmp_path / "pictures"
    sample = ["sample", str(files["sd1"]), "--prompt", "a cat", "--seeds", "0-1"]
    sample += [
        "--resolution",
        "32x32",
        "--output",
        str(pictures),
        "--lora",
        f"{output}:0.5",
        "--json",
    ]
    assert main(sample) == 0
    names = [Path(path).name for path in json.loads(capsys.readouterr().out)["pictures"]]
    assert names == ["001-00000000.png", "001-00000001.png"]
    assert main(sample) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert main(["resume", str(tmp_path / "run"), "--json"]) == 0  # finished already: same LoRA
    assert json.loads(capsys.readouterr().out)["step"] == 4


def test_a_file_that_appeared_meanwhile_is_left_alone(files, tmp_path):
    run = new_run(tmp_path, files[QUICKEST], steps=1)
    (tmp_path / "student.safetensors").write_bytes(b"mine")
    outcome = distil(run)
    assert outcome.lora == tmp_path / "student-2.safetensors" and outcome.lora.exists()
    assert (tmp_path / "student.safetensors").read_bytes() == b"mine"
    assert distil(run).lora == outcome.lora  # finished already: its own file is its own


def test_running_out_of_memory_is_named(files, tmp_path, monkeypatch):
    from dpdmd_studio.trainer.training import gradients

    def out_of_memory(*_):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    run = new_run(tmp_path, files[QUICKEST])
    monkeypatch.setattr(gradients, "student_update", out_of_memory)
    with pytest.raises(RunError, match="--gradient-checkpointing"):
        distil(run)
    assert run.read_json("progress.json")["status"] == "failed"


QUICK_OPTIONS = [
    *("--steps=1", "--batch-size=1", "--student-rank=2", "--fake-rank=2", "--fake-updates=1"),
    *("--resolution=32x32", "--preview-every=0", "--warmup-steps=0", "--dtype=float32"),
]
DAMAGES = {
    "a list": "[1]",
    "nothing": "",
    "deep": "[" * 100_000,
    "deep tables": '{"a":' * 100_000,
    "a huge number": '{"step": ' + "9" * 5000 + "}",
    "no step": '{"fingerprint": "x"}',
    "a text": '{"step": "4", "fingerprint": "x"}',
    "a list as step": '{"step": [4], "fingerprint": "x"}',
    "infinite": '{"step": Infinity, "fingerprint": "x"}',
    "below 0": '{"step": -1, "fingerprint": "x"}',
    "truth": '{"step": true, "fingerprint": "x"}',
    "no fingerprint": '{"step": 4}',
    "no text": "\udcff",
}


def test_a_damaged_state_is_named_whatever_it_holds(files, tmp_path):
    run = new_run(tmp_path, files[QUICKEST])
    distil(run)
    session = open_session(run)
    folder = run.latest_state()
    state, sound = folder / "state.json", (folder / "state.json").read_bytes()
    for what, text in DAMAGES.items():
        state.write_bytes(text.encode("utf-8", "surrogateescape"))
        with pytest.raises(RunError, match=r"is damaged|made with other settings") as caught:
            session.trainer.resume(run)
        assert str(caught.value).endswith("."), what
    state.write_bytes(sound)
    for name in ("student", "student-optimizer", "fake"):
        file = folder / f"{name}.safetensors"
        kept = file.read_bytes()
        for content in (b"", b"[" * 100, kept[:200]):
            file.write_bytes(content)
            with pytest.raises(RunError, match="is damaged"):
                session.trainer.resume(run)
        file.write_bytes(kept)
    assert session.trainer.resume(run)


@pytest.mark.parametrize("name", ["x" * 229, "x" * 243, "日" * 81])
def test_a_lora_may_have_any_name_that_the_drive_takes(name, files, tmp_path, capsys):
    (tmp_path / "p.txt").write_text("a cat\n")
    output = tmp_path / f"{name}.safetensors"
    arguments = ["distill", str(files[QUICKEST]), "--prompts", str(tmp_path / "p.txt")]
    arguments += ["--output", str(output), *QUICK_OPTIONS]
    assert main(arguments) == 0, capsys.readouterr().err
    output.write_bytes(b"somebody else's")
    run = RunDirectory.open(next((tmp_path / "home" / "runs").iterdir()))
    run.write_json("result.json", {})
    again = distil(run).lora
    assert again.name.endswith("-2.safetensors") and again.is_file()


def test_a_name_that_no_drive_takes_is_said_before_anything(files, tmp_path, capsys):
    (tmp_path / "p.txt").write_text("a cat\n")
    for name in ("x" * 244, "日" * 82):
        arguments = ["distill", str(files[QUICKEST]), "--prompts", str(tmp_path / "p.txt")]
        assert main([*arguments, "--output", str(tmp_path / f"{name}.safetensors")]) == 2
        assert "names of up to 255 bytes" in capsys.readouterr().err
    assert not (tmp_path / "home" / "runs").exists()


def test_a_last_write_that_fails_names_the_copy_that_is_kept(files, tmp_path):
    run = new_run(tmp_path, files[QUICKEST])
    output = Path(run.settings()["output"])
    run.write_json("settings.json", run.settings() | {"overwrite": True})
    with pytest.raises(OutputError, match=r"is a folder.*is kept as ") as caught:
        distil(run, lambda progress: output.mkdir(exist_ok=True))
    kept = Path(str(caught.value).partition("is kept as ")[2].partition(": copy it")[0])
    assert kept.is_file() and kept.parent == run.checkpoints and read_lora(kept).recipe
    output.rmdir()
    (run.path / "result.json").write_text("[1]")
    assert distil(run).lora == output


def test_a_disk_that_fills_up_while_a_state_is_saved_is_an_error(files, tmp_path, monkeypatch):
    from dpdmd_studio.core.errors import OutputError
    from dpdmd_studio.trainer.training import state
    from safetensors import SafetensorError

    def full(*_):
        raise SafetensorError("I/O error: No space left on device")

    run = new_run(tmp_path, files[QUICKEST], steps=1)
    monkeypatch.setattr(state, "save_file", full)
    with pytest.raises(OutputError, match="Free some space"):
        distil(run)
    assert run.latest_state() is None


def test_a_full_disk_is_named_and_the_run_can_go_on(files, tmp_path, monkeypatch):
    import errno

    from dpdmd_studio.core.errors import OutputError
    from dpdmd_studio.core.files import atomic_write

    run = new_run(tmp_path, files[QUICKEST], steps=2)
    with monkeypatch.context() as patch:

        def full(path):
            raise OSError(errno.ENOSPC, "No space left on device")

        patch.setattr(atomic_write, "_flush", full)
        with pytest.raises(OutputError, match="disk is full"):
            distil(run)
    assert distil(run).finished


def test_a_second_process_sees_the_same_numbers(files, tmp_path, uninterrupted):
    """A fresh interpreter resumes from the first one's state to the bit."""
    import subprocess

    whole = uninterrupted(QUICKEST, share=False)
    parts = new_run(tmp_path / "parts", files[QUICKEST], share_rollouts=False)

    def stop(progress):
        if progress.step == 2:
            request_stop(parts)

    distil(parts, stop)
    root = Path(__file__).resolve().parents[3]
    code = (
        "import importlib.util, sys, torch; torch.set_num_threads(1);"
        f"spec = importlib.util.spec_from_file_location('dpdmd_studio', r'{root / '__init__.py'}');"
        "m = importlib.util.module_from_spec(spec); sys.modules['dpdmd_studio'] = m;"
        "spec.loader.exec_module(m);"
        "from dpdmd_studio.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, "resume", str(parts.path)]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
    expected, found = final_state(whole), final_state(parts)
    assert all(torch.equal(expected[key], found[key]) for key in expected)
    shutil.rmtree(parts.path)
