"""The `estimate` command: what an update takes on every rung, what fits a card, and the time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from dpdmd_studio.app.config import distill_config
from dpdmd_studio.app.config.distill_config import DistillConfig
from dpdmd_studio.app.estimate import Memory
from dpdmd_studio.cli import estimate as cli_estimate
from dpdmd_studio.cli import main
from dpdmd_studio.cli.estimate import estimate_memory, memory_text, parse_memory
from dpdmd_studio.core.errors import SettingsError
from dpdmd_studio.core.families import identify
from dpdmd_studio.trainer.commands import timed_updates

GIB, ROOT = 2**30, Path(__file__).resolve().parents[2]


def test_what_fits_is_the_first_rung_below_the_settings(files, monkeypatch):
    def needed(detection, config, half_bytes):
        pictures = config.micro_batch_size or config.batch_size
        kept = 0 if config.offload_optimizer else 2 if config.optimizer == "adamw8bit" else 8
        base = (5 if config.base_weights == "keep" else 3) - 2 * config.offload_base
        activations = pictures * (1 if config.gradient_checkpointing else 4)
        sizes = (base, 1, kept, 1, activations)
        return Memory(*(size * GIB for size in sizes))

    def estimated(memory):
        return estimate_memory(identify(files["sd1"]), config, 1, memory)

    monkeypatch.setattr(cli_estimate, "arithmetic_memory", needed)
    config = DistillConfig(batch_size=4, dtype="float32", resolution="64x64")
    whole = estimated(None)
    assert whole.fits is None and whole.memory is None  # a CPU has no memory of its own
    rungs = [
        "--micro-batch-size 1", "--gradient-checkpointing", "--offload-optimizer",
        "--base-weights int8", "--offload-base",
    ]  # fmt: skip
    chain = [" ".join(rungs[: count + 1]) for count in range(len(rungs))]
    assert list(whole.rows) == ["as set", "--optimizer adamw8bit", *chain]
    assert [row.peak // GIB for row in whole.rows.values()] == [31, 25, 19, 16, 8, 6, 4]
    found = estimated(18 * GIB)  # 16 and 8 % and the driver's
    assert found.fits is not None and found.fits[0] == chain[1]
    assert found.rows == whole.rows
    text = memory_text(found).splitlines()
    assert text[4].startswith("and --gradient-checkpointing")
    assert text[-1] == f"A card with 18 GB: fits with {chain[1]} (16.00 GiB by arithmetic)."
    tiny = estimated(4 * GIB)
    assert tiny.fits is None and "neither these settings nor any preset" in memory_text(tiny)
    monkeypatch.setattr(cli_estimate, "_free_memory", lambda device: 18 * GIB)
    at_hand = estimated(None)  # free memory has the driver's share taken off already
    assert at_hand.fits is not None and at_hand.fits[0] == chain[1] and not at_hand.asked
    assert "The 18.0 GB that are free here: fits with" in memory_text(at_hand)


def test_sizes_of_cards_are_understood():
    assert parse_memory("12gb") == parse_memory("12 GiB") == parse_memory("12") == 12 * 2**30
    for wrong in ("much", "-3gb", "0", "12tb"):
        with pytest.raises(SettingsError, match="12gb"):
            parse_memory(wrong)


def test_a_size_that_a_run_would_refuse_is_refused(files, capsys):
    assert main(["estimate", str(files["sd1"]), "--resolution", "33x33"]) == 2
    assert "resolution 33x33 does not suit SD 1.x" in capsys.readouterr().err


def test_the_time_of_a_run_is_measured_and_nothing_is_left(files, home, capsys, monkeypatch):
    clock = iter(range(0, 1000, 7))
    monkeypatch.setattr(timed_updates, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    size = ("--resolution", "64x64", "--batch-size", "1", "--steps", "3", "--device", "cpu")
    assert main(["estimate", str(files["sd1"]), *size, "--measure"]) == 0
    assert "about 21 s for 3 updates of 7.00 s, measured" in capsys.readouterr().out
    assert not (home / "runs").exists()


def test_an_estimate_for_a_card_reads_headers_and_never_imports_torch(files):
    code = (
        "import importlib.util, sys;"
        f"spec = importlib.util.spec_from_file_location('dpdmd_studio', r'{ROOT / '__init__.py'}');"
        "m = importlib.util.module_from_spec(spec); sys.modules['dpdmd_studio'] = m;"
        "spec.loader.exec_module(m); sys.modules['torch'] = None;"
        "from dpdmd_studio.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, "estimate", str(files["sd3"]), "--memory", "12gb"]
    done = subprocess.run([*command, "--json"], check=True, capture_output=True, text=True)
    found = json.loads(done.stdout)
    assert found["dtype"] == "bfloat16" and found["fits"]["settings"] == "as set"
    row = found["rows"]["as set"]
    assert row["peak"] == sum(value for name, value in row.items() if name != "peak")


@pytest.mark.parametrize("option", ["--shard-base", "--no-shard-base"])
def test_an_option_of_an_earlier_version_names_what_replaces_it(option, files, caplog, capsys):
    distill_config._say.cache_clear()
    assert main(["estimate", str(files["sd1"]), "--resolution", "64x64", option]) == 0
    said = "The setting shard_base no longer exists and is ignored" in caplog.text
    assert said == (option == "--shard-base")
    with pytest.raises(SystemExit):
        main(["estimate", "--help"])
    assert "shard" not in capsys.readouterr().out
