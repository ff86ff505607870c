"""`check`: the whole of it on an embedded teacher, its faults on tiny and damaged checkpoints."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
import torch
from dpdmd_studio.app import jobs
from dpdmd_studio.app.config.distill_config import DistillConfig
from dpdmd_studio.app.config.request import DistillRequest, ModelFiles
from dpdmd_studio.app.estimate import earlier_runs, time_of_earlier_runs
from dpdmd_studio.app.findings import checkup as verdicts
from dpdmd_studio.app.findings.checkup import read_lines
from dpdmd_studio.app.jobs import spawn
from dpdmd_studio.app.runs import exit_note
from dpdmd_studio.app.runs.lock import owned
from dpdmd_studio.cli import main
from dpdmd_studio.core.families import identify
from dpdmd_studio.trainer.commands import check_parts as command
from dpdmd_studio.trainer.commands.check import CheckRequest, CheckResult, check
from dpdmd_studio.trainer.evaluation import checkup
from dpdmd_studio.trainer.model.roles import AdapterRoles
from safetensors.torch import load_file, save_file
from tiny_runs import TINY, heard

pytestmark = pytest.mark.usefixtures("home")
TEACHER = Path(__file__).parents[3] / "trainer" / "assets" / "shapes-sd1.safetensors"
SEEDS, PLAIN_STEPS = command.SEEDS, command.PLAIN_STEPS
OF_RUNS = {name: value for name, value in TINY.items() if name != "resolution"}
ALL = ("encoding", "loading", "adapters", "picture", "few_steps", "updates", "memory", "float32",
       "bfloat16", "float16")  # fmt: skip


@pytest.fixture(autouse=True)
def little_work(monkeypatch):
    """One image a prompt, and no more updates than the estimate asks for."""
    monkeypatch.setattr(command, "SEEDS", (1,))
    monkeypatch.setattr(command, "PLAIN_STEPS", 8)


def asked(path: Path, *, again: bool = False, **settings) -> CheckRequest:
    size = {} if path == TEACHER else {"resolution": "32x32"}
    config = DistillConfig.from_dict(OF_RUNS | {"batch_size": 1} | size | settings)
    return CheckRequest(model=ModelFiles(checkpoint=str(path)), config=config, again=again)


def verdict_of(result: CheckResult, name: str) -> str:
    return next(line.verdict for line in result.lines if name in line.name)


@pytest.fixture
def only(monkeypatch):
    """Restricts checks to the named parts."""
    whole = command.Checkup.parts

    def restrict(*names: str) -> None:
        monkeypatch.setattr(
            command.Checkup, "parts", lambda self: [p for p in whole(self) if p.name in names]
        )

    return restrict


def altered(path: Path, folder: Path, change) -> Path:
    """A copy of a checkpoint with changed tensors and the same metadata."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    state = load_file(path)
    change(state)
    save_file(state, folder / "altered.safetensors", metadata=metadata)
    return folder / "altered.safetensors"


def test_an_embedded_teacher_passes_and_is_gone_on_with(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "SEEDS", SEEDS)
    monkeypatch.setattr(command, "PLAIN_STEPS", PLAIN_STEPS)
    request = asked(TEACHER)

    def interrupted(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkup, "stages_of_update", interrupted)
        with pytest.raises(KeyboardInterrupt):
            check(request)
    with heard() as lines:
        result = check(request)
    assert tuple(result.figures) == ALL
    started = [line for line in lines if line.startswith("[")]
    assert len(started) == 4 and "[1/4] Measuring the memory" in started[0]
    reds = {line.name: line.found for line in result.lines if line.verdict == "red"}
    assert not reds
    assert verdict_of(result, "Memory") == "not measured"  # its size is not a published one
    assert verdict_of(result, "few-step") == verdict_of(result, "picture") == "green"
    assert result.figures["adapters"]["largest"] == 0
    for name in ("check.md", "teacher.png", "few-steps.png"):
        assert (result.folder / name).stat().st_size > 100
    assert (result.folder / "check.md").read_text(encoding="utf-8") == result.table
    assert "shapes-sd1.safetensors" in result.table
    assert str(TEACHER.parent) not in result.table and str(tmp_path) not in result.table
    assert not list((result.folder / "run" / "state").iterdir())
    seconds, text = time_of_earlier_runs(TEACHER, identify(TEACHER), request.config)
    assert seconds is not None and "earlier run" in text
    assert earlier_runs()[0].path == result.folder / "run"  # the page's
    with heard() as lines:
        assert check(request).table == result.table
    assert not any(line.startswith("[") for line in lines)
    json.dumps(result.to_dict())


def test_every_part_works_with_a_flow_model_of_several_encoders(files):
    result = check(asked(files["sd3"]))
    assert tuple(result.figures) == ALL
    assert not [part for part, found in result.figures.items() if "error" in found]
    assert verdict_of(result, "untrained") == "green"


def test_other_settings_and_another_file_are_another_check(files, only):
    only("encoding")
    first = check(asked(files["sd1"]))
    assert check(asked(files["sd1"])).folder == first.folder
    assert check(asked(files["sd1"], student_rank=5)).folder != first.folder
    before = (first.folder / "check.json").stat().st_mtime_ns
    files["sd1"].touch()
    assert check(asked(files["sd1"])).folder != first.folder
    assert (first.folder / "check.json").stat().st_mtime_ns == before


def test_again_does_finished_parts_anew_and_a_damaged_file_counts_as_none(files, only):
    only("encoding")
    result = check(asked(files["sd1"]))
    for again in (True, False):
        if not again:
            (result.folder / "check.json").write_text("{")
        with heard() as lines:
            check(asked(files["sd1"], again=again))
        assert any(line.startswith("[1/1]") for line in lines)


def test_weights_that_are_no_numbers_are_red(files, tmp_path, only):
    def spoil(state):
        name = next(n for n in state if n.endswith("input_blocks.0.0.weight"))
        state[name][0] = torch.nan

    only("loading", "adapters", "picture", "updates", "float32", "bfloat16")
    result = check(asked(altered(files["sd1"], tmp_path, spoil)))
    assert verdict_of(result, "picture") == "red"
    others = {line.verdict for line in result.lines[1:]}
    assert others == {"not measured"}
    assert "altered.safetensors" in result.table and str(tmp_path) not in result.table


def test_a_decoder_that_paints_everything_black_is_red(tmp_path, only):
    def blacken(state):
        names = [n for n in state if n.startswith("first_stage_model.") and n.endswith(".weight")]
        last = max(names, key=lambda n: int("".join(c for c in n if c.isdecimal()) or 0))
        state[last].zero_()
        state[last.replace("weight", "bias")].fill_(-1)

    only("loading", "picture")
    result = check(asked(altered(TEACHER, tmp_path, blacken)))
    assert verdict_of(result, "picture") == "red"
    assert "one colour" in result.table and "--vae" in result.table


def test_a_decoder_that_gives_no_numbers_is_red(tmp_path, only):
    def spoil(state):
        name = next(n for n in state if n.startswith("first_stage_model.") and n.endswith("weight"))
        state[name] *= torch.inf

    only("loading", "picture")
    result = check(asked(altered(TEACHER, tmp_path, spoil)))
    assert verdict_of(result, "picture") == "red" and "--vae" in result.table


def test_a_network_that_draws_noise_is_red(files, only):
    only("loading", "picture", "few_steps")
    result = check(asked(files["sd1"]))  # random weights
    assert verdict_of(result, "picture") == "red"
    assert verdict_of(result, "few-step") == "not measured"


def test_an_adapter_that_is_not_neutral_is_red(files, only, monkeypatch):
    def initialise(self, seed):
        original(self, seed)
        for name, parameter in self.named_parameters("student"):
            if "lora_B" in name:
                parameter.data.fill_(0.1)

    original = AdapterRoles._initialise
    only("adapters")
    assert verdict_of(check(asked(files["sd1"])), "untrained") == "green"
    monkeypatch.setattr(AdapterRoles, "_initialise", initialise)
    assert verdict_of(check(asked(files["sd1"], again=True)), "untrained") == "red"


def test_a_network_that_is_wrong_in_bfloat16_is_red(tmp_path, only):
    """A large constant, which the norms take off again, leaves bfloat16 no digits."""

    def offset(state):
        for name in (n for n in state if n.endswith("emb_layers.1.bias")):
            state[name] += 2000

    only("loading", "float32", "bfloat16", "float16")
    sound = check(asked(TEACHER, dtype="bfloat16"))
    assert verdict_of(sound, "format") == "green"
    result = check(asked(altered(TEACHER, tmp_path, offset), dtype="bfloat16"))
    assert verdict_of(result, "format") == "red"


@pytest.mark.parametrize(("share", "verdict"), [(0.5, "red"), (1.0, "green"), (3.0, "red")])
def test_an_estimate_that_is_far_off_is_red(share, verdict, files, only, monkeypatch):
    class Reckoned:
        peak = 0

    def stages(session):
        found = original(session)
        Reckoned.peak = round(share * max(found.values()))
        return found

    original = checkup.stages_of_update
    only("memory")
    monkeypatch.setattr(checkup, "stages_of_update", stages)
    monkeypatch.setattr(command, "arithmetic_memory", lambda *arguments: Reckoned)
    monkeypatch.setattr(verdicts, "COMPARABLE", 0.0)
    assert verdict_of(check(asked(files["sd1"])), "Memory") == verdict


def test_too_little_memory_is_said_and_tried_again(files, only, monkeypatch):
    def full(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory")

    only("memory")
    with monkeypatch.context() as patch:
        patch.setattr(checkup, "stages_of_update", full)
        assert verdict_of(check(asked(files["sd1"])), "Memory") == "red"
    assert verdict_of(check(asked(files["sd1"])), "Memory") == "not measured"  # a tiny network


def test_a_network_without_room_in_float32_is_said(files, only, monkeypatch):
    only("loading", "float32", "bfloat16")
    monkeypatch.setattr(command, "free_computer_memory", lambda: 1000)
    result = check(asked(files["sd1"], dtype="bfloat16"))
    assert verdict_of(result, "format") == "not measured"
    assert "no float32 to compare with: the network takes" in result.table


def test_a_bad_input_is_one_clear_line(files, tmp_path, capsys):
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(files["sd1"].read_bytes()[:5000])
    lora = tmp_path / "lora.safetensors"
    save_file({"lora_unet_x.lora_down.weight": torch.zeros(4, 8)}, lora)
    for path in (tmp_path / "nothing.safetensors", damaged, lora):
        assert main(["check", str(path)]) == 2
        said = capsys.readouterr().err.strip().splitlines()
        assert len(said) == 1 and said[0].startswith("error: ")
    missing = ["--teacher-lora", str(tmp_path / "missing.safetensors")]
    assert main(["check", str(files["sd1"]), *missing]) == 2
    assert capsys.readouterr().err.strip().splitlines()[-1].startswith("error: ")


def test_the_command_prints_the_table(files, only, capsys):
    only("encoding")
    options = ["--resolution", "32x32", "--student-rank", "2"]
    assert main(["check", str(files["sd1"]), *options]) == 0
    assert "| question | found | verdict |" in capsys.readouterr().out
    assert main(["check", str(files["sd1"]), *options, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["figures"]["encoding"]["peak"] > 0


def test_the_queue_checks_as_the_command_line_does(files, only, capsys, monkeypatch, home):
    """The job's own command, in the job's own folder, waits for the device."""
    only("encoding")
    monkeypatch.setattr(spawn, "ensure_worker", lambda: False)
    config = DistillConfig.from_dict(OF_RUNS | {"batch_size": 1, "resolution": "32x32"})
    model, prompts = ModelFiles(checkpoint=str(files["sd1"])), ("a cat", "a dog")
    job = jobs.submit_check(
        DistillRequest(model=model, config=config, output="unused.safetensors"), prompts
    )
    arguments = json.loads((job.path / "task.json").read_text(encoding="utf-8"))["arguments"]
    monkeypatch.chdir(job.path)
    monkeypatch.setenv(exit_note.VARIABLE, str(job.path))
    held, let_go = threading.Event(), threading.Event()

    def hold() -> None:
        with owned(home / "locks" / "cpu.json", about="another one"):
            held.set()
            let_go.wait(60)

    (home / "locks").mkdir(parents=True)
    holder = threading.Thread(target=hold)
    holder.start()
    held.wait(60)
    with heard(lambda text: let_go.set()) as said:
        assert main([*arguments, "--json"]) == 0
    holder.join()
    assert any("Waiting for cpu: another one" in line for line in said)
    printed = capsys.readouterr().out
    monkeypatch.delenv(exit_note.VARIABLE)
    result = check(CheckRequest(model=model, config=config, prompts=prompts))
    found = json.loads(printed)
    assert found["folder"] == str(result.folder) and found["table"] == result.table
    assert read_lines(found) == result.lines
    (job.path / "output.txt").write_text(printed)
    (job.path / "queued").unlink()
    assert jobs.get_job(job.id).result["verdicts"] == found["verdicts"]
