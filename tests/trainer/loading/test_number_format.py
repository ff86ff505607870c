"""float16 for what is stored so and predicts eps or v, unless it overflows; resumes keep theirs."""

from __future__ import annotations

import json

import checkpoints
import pytest
import torch
from dpdmd_studio.app.config.distill_config import DistillConfig
from dpdmd_studio.app.config.request import DistillRequest, ModelFiles
from dpdmd_studio.cli import main
from dpdmd_studio.core.errors import NonFiniteError
from dpdmd_studio.core.families import AskedSampling
from dpdmd_studio.trainer.commands import open_session as module
from dpdmd_studio.trainer.commands import sample
from dpdmd_studio.trainer.commands.open_session import open_session
from dpdmd_studio.trainer.loading import number_format
from dpdmd_studio.trainer.loading.checkpoint import OpenedCheckpoint
from dpdmd_studio.trainer.loading.number_format import number_formats
from tiny_runs import BUILDERS, distil, final_state, heard, new_run

HALF, BRAIN = torch.float16, torch.bfloat16
CUDA = torch.device("cuda")
PLAIN = AskedSampling()


@pytest.fixture
def ampere(monkeypatch):
    """A card that is fast in both, as far as the choice goes."""

    def choose(wanted, device):
        usual = torch.float32 if device.type == "cpu" else BRAIN
        return usual if wanted == "auto" else getattr(torch, wanted)

    monkeypatch.setattr(number_format, "choose_dtype", choose)
    monkeypatch.setattr(module, "choose_dtype", choose)


@pytest.mark.usefixtures("ampere")
@pytest.mark.parametrize(
    ("family", "formats"), [("sd1", (HALF, BRAIN)), ("sdxl", (HALF, BRAIN)), ("sd3", (BRAIN,))]
)
def test_float16_is_tried_where_it_gains(family, formats, files):
    assert number_formats("auto", CUDA, files[family], PLAIN) == formats
    assert number_formats("bfloat16", CUDA, files[family], PLAIN) == (BRAIN,)
    assert number_formats("auto", torch.device("xpu"), files[family], PLAIN) == (BRAIN,)


@pytest.mark.usefixtures("ampere")
@pytest.mark.parametrize("stored", [torch.float32, BRAIN])
def test_other_files_keep_bfloat16(stored, tmp_path):
    state = checkpoints.file_state(BUILDERS["sd1"]())
    path = checkpoints.save(tmp_path / "a.safetensors", state, dtype=stored)
    assert number_formats("auto", CUDA, path, PLAIN) == (BRAIN,)


@pytest.mark.usefixtures("ampere")
def test_what_is_set_to_be_a_flow_counts_as_one(files):
    assert number_formats("auto", CUDA, files["sdxl"], AskedSampling(prediction="v")) == (
        HALF,
        BRAIN,
    )
    assert number_formats("auto", CUDA, files["sdxl"], AskedSampling(prediction="flow")) == (BRAIN,)


def test_a_run_takes_the_first_format_that_does_not_overflow(files, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_number_formats", lambda *_: (HALF, torch.float32))
    assert open_session(new_run(tmp_path / "a", files["sd1"])).checkpoint.dtype == HALF
    run = new_run(tmp_path / "b", files["sd1"])
    with monkeypatch.context() as patch, heard() as lines:
        patch.setattr(number_format, "overflows", lambda *_: True)
        session = open_session(run)
    assert session.checkpoint.dtype == torch.float32 and not session.trainer.network.scales
    assert any("beyond what float16 holds" in line for line in lines)
    assert "Number format: float32" in lines


def test_a_network_that_overflows_is_found_out(files, tmp_path):
    session = open_session(new_run(tmp_path, files["sd1"], dtype="float16"))
    assert not number_format.overflows(session.checkpoint, session.negative)
    with torch.no_grad():
        session.checkpoint.network.conv_in.weight.mul_(3e4)
    assert number_format.overflows(session.checkpoint, session.negative)


def test_weights_or_prompts_that_overflow_are_read_again(files, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_number_formats", lambda *_: (HALF, torch.float32))
    original = module._encode

    def encode(checkpoint, *others):
        if checkpoint.dtype == HALF:
            raise NonFiniteError("beyond")
        return original(checkpoint, *others)

    monkeypatch.setattr(module, "_encode", encode)
    assert open_session(new_run(tmp_path, files["sd1"])).checkpoint.dtype == torch.float32


@pytest.mark.usefixtures("ampere")
def test_a_run_goes_on_in_the_format_of_its_state(files, tmp_path):
    run = new_run(tmp_path, files["sd1"], steps=1)
    request = DistillRequest(
        model=ModelFiles(checkpoint=str(files["sd1"])), config=DistillConfig(), output="x"
    )
    assert module._number_formats(run, request, CUDA) == (HALF, BRAIN)
    distil(run)
    path = run.latest_state() / "state.json"
    facts = json.loads(path.read_text())
    assert facts["dtype"] == "float32" and final_state(run)
    for said, formats in ((HALF, (HALF,)), (BRAIN, (BRAIN,)), (None, (BRAIN,)), (3, (BRAIN,))):
        name = str(said).removeprefix("torch.") if isinstance(said, torch.dtype) else said
        path.write_text(json.dumps(facts | {"dtype": name}))
        assert module._number_formats(run, request, CUDA) == formats
    del facts["dtype"]  # as versions before this left it
    path.write_text(json.dumps(facts))
    assert module._number_formats(run, request, CUDA) == (BRAIN,)


@pytest.mark.usefixtures("ampere", "home")
@pytest.mark.parametrize("command", ["sample", "compare"])
def test_commands_that_draw_take_the_format_of_a_run(command, files, tmp_path, monkeypatch):
    """On a CPU that stands in for a card: what is asked, and what is made of the answer."""
    asked, loaded = [], []
    original = OpenedCheckpoint.load

    def formats(wanted, device, path, sampling):
        asked.append((wanted, CUDA, path, sampling))
        return HALF, torch.float32

    def load(self, onto=None):
        loaded.append(self.dtype)
        return original(self, onto)

    monkeypatch.setattr(sample, "number_formats", formats)
    monkeypatch.setattr(OpenedCheckpoint, "load", load)
    (tmp_path / "prompts.txt").write_text("a cat\n")
    words = [command, str(files["sd1"]), "--prompts", str(tmp_path / "prompts.txt")]
    words += ["--seeds", "0-1", "--resolution", "32x32", "--prediction", "v"]
    words += ["--teacher-steps" if command == "compare" else "--steps", "2"]
    assert main([*words, "--output", str(tmp_path / "one")]) == 0
    assert loaded == [HALF]
    (question,) = asked
    assert question[3].prediction == "v" and number_formats(*question) == (HALF, BRAIN)
    with heard() as said:
        monkeypatch.setattr(number_format, "overflows", lambda *_: True)
        assert main([*words, "--output", str(tmp_path / "two")]) == 0
    assert loaded == [HALF, HALF, torch.float32]
    assert any("beyond what float16 holds" in line for line in said)
