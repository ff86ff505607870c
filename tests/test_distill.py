"""Distillation end to end on tiny checkpoints of all families: the worker's whole job."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import checkpoints
import pytest
import torch
from dpdmd_studio.core.errors import NonFiniteError, RunError
from dpdmd_studio.core.lora_file import lora_deltas, merge_lora, read_lora, weight_shapes
from dpdmd_studio.trainer.cli import main
from dpdmd_studio.trainer.config import DistillConfig
from dpdmd_studio.trainer.engine import runner
from dpdmd_studio.trainer.engine.checkpoint import load_checkpoint
from dpdmd_studio.trainer.engine.session import open_session
from dpdmd_studio.trainer.request import DistillRequest, ModelFiles
from dpdmd_studio.trainer.run_directory import RunDirectory
from safetensors.torch import load_file

PROMPTS = ["a cat", "a {red|blue} dog", "a (tall:1.2) house"]
TINY = {
    "steps": 4,
    "batch_size": 2,
    "student_rank": 2,
    "fake_rank": 3,
    "fake_updates": 2,
    "resolution": "32x32",
    "save_every": 2,
    "preview_every": 0,
    "student_lr": 1e-2,
    "warmup_steps": 1,
    "ema_decay": 0.5,
}
BUILDERS = {
    "sd1": checkpoints.sd1,
    "sdxl": checkpoints.sdxl,
    "sd3": lambda: checkpoints.sd3(medium35=True, with_t5=False),
}


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    return {
        name: checkpoints.save(folder / f"{name}.safetensors", checkpoints.file_state(build()))
        for name, build in BUILDERS.items()
    }


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("DPDMD_HOME", str(tmp_path / "home"))


def new_run(folder: Path, checkpoint: Path, **settings) -> RunDirectory:
    request = DistillRequest(
        model=ModelFiles(checkpoint=str(checkpoint)),
        config=DistillConfig.from_dict(TINY | settings),
        output=str(folder / "student.safetensors"),
    )
    folder.mkdir(parents=True, exist_ok=True)
    return runner.create_run(folder / "run", request, PROMPTS, overwrite=False)


def distil(run: RunDirectory, on_progress=lambda progress: None) -> runner.Outcome:
    return runner.run_distillation(run, report=lambda text: None, on_progress=on_progress)


def final_state(run: RunDirectory) -> dict[str, torch.Tensor]:
    folder = run.latest_state()
    tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors |= {f"{file.name}/{k}": v for k, v in load_file(file).items()}
    return tensors


def metrics_of(run: RunDirectory) -> list[dict]:
    measured = ("seconds", "memory_bytes")
    return [{k: v for k, v in line.items() if k not in measured} for line in run.metrics()]


@pytest.mark.parametrize("name", BUILDERS)
def test_every_family_distils_and_the_lora_is_the_student(name, files, tmp_path):
    run = new_run(tmp_path, files[name], ema_decay=0.0)
    outcome = distil(run)
    assert outcome.finished and outcome.step == 4
    lora = read_lora(outcome.lora)
    recipe = lora.recipe
    assert recipe.num_steps == 4 and recipe.family == name
    # merged into a fresh copy of the checkpoint, the file gives the adapter's own predictions
    plain = load_checkpoint(files[name], dtype=torch.float32, device="cpu")
    deltas = lora_deltas(lora, plain.family, plain.config, weight_shapes(plain.network))
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


def test_a_stopped_and_resumed_run_equals_an_uninterrupted_one(files, tmp_path):
    whole = new_run(tmp_path / "whole", files["sd1"])
    distil(whole)
    parts = new_run(tmp_path / "parts", files["sd1"])

    def stop_after_first(progress):
        if progress.step == 1:
            parts.request_stop()

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
def test_a_run_killed_anywhere_resumes_exactly(files, tmp_path, monkeypatch, place):
    whole = new_run(tmp_path / "whole", files["sd1"], share_rollouts=False)
    distil(whole)
    run = new_run(tmp_path / "killed", files["sd1"], share_rollouts=False)
    from dpdmd_studio.trainer.engine import loop, state
    from dpdmd_studio.trainer.engine.distiller import Distiller

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
            patch.setattr(Distiller, "student_update", die_at(2, Distiller.student_update))
        elif place == "student":
            patch.setattr(Distiller, "student_update", die_at(4, Distiller.student_update))
        elif place == "fake":
            patch.setattr(Distiller, "fake_update", die_at(6, Distiller.fake_update))
        elif place == "between":
            patch.setattr(RunDirectory, "append_metrics", die_at(3, RunDirectory.append_metrics))
        else:
            patch.setattr(state, "save_file", die_at(7, state.save_file))
            assert loop.save_state is state.save_state
        with pytest.raises(Killed):
            distil(run)
    assert distil(run).finished
    expected, found = final_state(whole), final_state(run)
    assert all(torch.equal(expected[key], found[key]) for key in expected)
    assert metrics_of(whole) == metrics_of(run)


def test_resuming_with_changed_settings_is_refused(files, tmp_path):
    run = new_run(tmp_path, files["sd1"], steps=3)
    distil(run)
    settings = run.settings()
    settings["config"]["student_lr"] = 5e-3
    run.write_json("settings.json", settings)
    with pytest.raises(RunError, match="other settings"):
        distil(run)


def test_a_run_in_use_is_refused(files, tmp_path):
    run = new_run(tmp_path, files["sd1"])
    with run.lock(), pytest.raises(RunError, match="in use by process"):
        distil(run)


def test_a_gradient_that_is_not_finite_stops_and_keeps_the_last_state(files, tmp_path, monkeypatch):
    from dpdmd_studio.trainer.engine import losses

    run = new_run(tmp_path, files["sd1"])
    original, calls = losses.matching_loss, []

    def poisoned(x0, gradient):
        calls.append(1)
        loss = original(x0, gradient)
        return loss * float("nan") if len(calls) == 3 else loss

    monkeypatch.setattr(losses, "matching_loss", poisoned)
    with pytest.raises(NonFiniteError, match="Update 3: the student's gradient"):
        distil(run)
    assert run.latest_state().name == "step-00000002"
    assert run.read_json("progress.json")["status"] == "failed"


def test_the_head_start_trains_the_fake_score_alone(files, tmp_path):
    run = new_run(tmp_path, files["sd1"], fake_head_start=3)
    session = open_session(run, lambda text: None)
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
    run = new_run(tmp_path, files["sd1"], steps=2, preview_every=1)
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
    sample += ["--output", str(pictures), "--lora", f"{output}:0.5", "--json"]
    assert main(sample) == 0
    names = [Path(path).name for path in json.loads(capsys.readouterr().out)["pictures"]]
    assert names == ["001-00000000.png", "001-00000001.png"]
    assert main(sample) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert main(["resume", str(tmp_path / "run"), "--json"]) == 0  # finished already: same LoRA
    assert json.loads(capsys.readouterr().out)["step"] == 4


def bad_input(files, folder: Path) -> dict[str, tuple[list[str], str]]:
    """Arguments of `distill` by mistake, and what the message must name."""
    good, prompts = files["sd1"], folder / "prompts.txt"
    prompts.write_text("a cat\n")
    (folder / "empty.txt").write_text("# nothing\n")
    (folder / "binary.txt").write_bytes(b"\x00\x01\x02")
    (folder / "latin.txt").write_bytes("caf\xe9\n".encode("latin-1"))
    (folder / "empty.safetensors").write_bytes(b"")
    (folder / "old.ckpt").write_bytes(b"PK\x03\x04")
    (folder / "taken.safetensors").write_bytes(b"mine")
    (folder / "cut.safetensors").write_bytes(good.read_bytes()[:-1000])
    lora = folder / "lora.safetensors"
    from safetensors.torch import save_file

    save_file({"lora_unet_down_blocks_0.lora_down.weight": torch.zeros(1, 1)}, lora)
    p, out = ["--prompts", str(prompts)], ["--output", str(folder / "new.safetensors")]
    return {
        "missing checkpoint": ([str(folder / "no.safetensors"), *p, *out], "no.safetensors"),
        "empty file": ([str(folder / "empty.safetensors"), *p, *out], "empty"),
        "pickle": ([str(folder / "old.ckpt"), *p, *out], "Convert"),
        "truncated": ([str(folder / "cut.safetensors"), *p, *out], "cut.safetensors"),
        "folder": ([str(folder), *p, *out], str(folder.name)),
        "lora as checkpoint": ([str(lora), *p, *out], "LoRA"),
        "no prompts file": ([str(good), "--prompts", str(folder / "x.txt"), *out], "x.txt"),
        "no prompts": ([str(good), "--prompts", str(folder / "empty.txt"), *out], "empty.txt"),
        "binary prompts": ([str(good), "--prompts", str(folder / "binary.txt"), *out], "binary"),
        "not utf-8": ([str(good), "--prompts", str(folder / "latin.txt"), *out], "UTF-8"),
        "output exists": (
            [str(good), *p, "--output", str(folder / "taken.safetensors")],
            "--overwrite",
        ),
        "output nowhere": ([str(good), *p, "--output", str(folder / "a" / "b.safetensors")], "a"),
        "K too large": ([str(good), *p, *out, "--anchor-step", "99"], "28 steps"),
        "one step": ([str(good), *p, *out, "--num-steps", "1"], "2"),
        "rank zero": ([str(good), *p, *out, "--student-rank", "0"], "least allowed is 1"),
        "odd resolution": ([str(good), *p, *out, "--resolution", "1001x1024"], "multiples of"),
    }


CASES = [
    *("missing checkpoint", "empty file", "pickle", "truncated", "folder", "lora as checkpoint"),
    *("no prompts file", "no prompts", "binary prompts", "not utf-8", "output exists"),
    *("output nowhere", "K too large", "one step", "rank zero", "odd resolution"),
]


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_one_clear_message_and_loses_nothing(case, files, tmp_path, capsys):
    cases = bad_input(files, tmp_path)
    assert sorted(cases) == sorted(CASES)
    arguments, named = cases[case]
    before = (tmp_path / "taken.safetensors").read_bytes()
    assert main(["distill", *arguments]) == 2
    captured = capsys.readouterr()
    message = captured.err.strip().splitlines()[-1]
    assert message.startswith("error: ") and named in message
    assert "Traceback" not in captured.err and not captured.out
    assert (tmp_path / "taken.safetensors").read_bytes() == before
    assert not (tmp_path / "new.safetensors").exists()


def test_mistaken_places_are_refused_before_training(files, tmp_path, capsys):
    checkpoint = tmp_path / "model.safetensors"
    shutil.copy(files["sd1"], checkpoint)
    before = checkpoint.read_bytes()
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a cat")
    common = [str(checkpoint), "--prompts", str(prompts), "--overwrite", "--output"]
    assert main(["distill", *common, str(checkpoint)]) == 2
    assert "this run reads" in capsys.readouterr().err
    both = str(tmp_path / "both.safetensors")
    assert main(["distill", *common, both, "--run", both]) == 2
    assert "run's folder, too" in capsys.readouterr().err
    assert main(["distill", *common, str(tmp_path / "lora.ckpt")]) == 2
    assert ".safetensors" in capsys.readouterr().err
    assert checkpoint.read_bytes() == before


def test_a_mistaken_checkpoint_never_costs_an_earlier_run(files, tmp_path, capsys):
    run = new_run(tmp_path, files["sd1"])
    before = run.settings()
    (tmp_path / "prompts.txt").write_text("a cat")
    arguments = ["--prompts", str(tmp_path / "prompts.txt"), "--run", str(run.path)]
    arguments += ["--output", str(tmp_path / "new.safetensors"), "--overwrite"]
    assert main(["distill", str(tmp_path / "typo.safetensors"), *arguments]) == 2
    assert "typo.safetensors" in capsys.readouterr().err
    assert run.settings() == before


def test_a_file_that_appeared_meanwhile_is_left_alone(files, tmp_path):
    run = new_run(tmp_path, files["sd1"], steps=1)
    (tmp_path / "student.safetensors").write_bytes(b"mine")
    outcome = distil(run)
    assert outcome.lora == tmp_path / "student-2.safetensors" and outcome.lora.exists()
    assert (tmp_path / "student.safetensors").read_bytes() == b"mine"
    assert distil(run).lora == outcome.lora  # finished already: its own file is its own


def test_running_out_of_memory_is_named(files, tmp_path, monkeypatch):
    from dpdmd_studio.trainer.engine.distiller import Distiller

    def out_of_memory(*_):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    run = new_run(tmp_path, files["sd1"])
    monkeypatch.setattr(Distiller, "student_update", out_of_memory)
    with pytest.raises(RunError, match="--gradient-checkpointing"):
        distil(run)
    assert run.read_json("progress.json")["status"] == "failed"


def test_a_disk_that_fills_up_while_a_state_is_saved_is_an_error(files, tmp_path, monkeypatch):
    from dpdmd_studio.core.errors import OutputError
    from dpdmd_studio.trainer.engine import state
    from safetensors import SafetensorError

    def full(*_):
        raise SafetensorError("I/O error: No space left on device")

    run = new_run(tmp_path, files["sd1"], steps=1)
    monkeypatch.setattr(state, "save_file", full)
    with pytest.raises(OutputError, match="Free some space"):
        distil(run)
    assert run.latest_state() is None


def test_a_full_disk_is_named_and_the_run_can_go_on(files, tmp_path, monkeypatch):
    import errno

    from dpdmd_studio.core import atomic_write
    from dpdmd_studio.core.errors import OutputError

    run = new_run(tmp_path, files["sd1"], steps=2)
    with monkeypatch.context() as patch:

        def full(path):
            raise OSError(errno.ENOSPC, "No space left on device")

        patch.setattr(atomic_write, "_flush", full)
        with pytest.raises(OutputError, match="disk is full"):
            distil(run)
    assert distil(run).finished


def test_a_second_process_sees_the_same_numbers(files, tmp_path):
    """A fresh interpreter resumes from the first one's state to the bit."""
    import subprocess

    whole = new_run(tmp_path / "whole", files["sd1"])
    distil(whole)
    parts = new_run(tmp_path / "parts", files["sd1"])

    def stop(progress):
        if progress.step == 2:
            parts.request_stop()

    distil(parts, stop)
    root = Path(__file__).resolve().parents[1]
    code = (
        "import importlib.util, sys, torch; torch.set_num_threads(2);"
        f"spec = importlib.util.spec_from_file_location('dpdmd_studio', r'{root / '__init__.py'}');"
        "m = importlib.util.module_from_spec(spec); sys.modules['dpdmd_studio'] = m;"
        "spec.loader.exec_module(m);"
        "from dpdmd_studio.trainer.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, "resume", str(parts.path)]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
    expected, found = final_state(whole), final_state(parts)
    assert all(torch.equal(expected[key], found[key]) for key in expected)
    shutil.rmtree(parts.path)
