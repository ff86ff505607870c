"""What the program logs is shown by the command line, and by nobody else."""

from __future__ import annotations

import io
import logging
import subprocess
import sys
from pathlib import Path

import pytest
from dpdmd_studio.cli import console
from dpdmd_studio.core.errors import SettingsError
from dpdmd_studio.trainer.commands.terminal import ProgressLine
from dpdmd_studio.trainer.training.loop import Progress

MOUNT = Path(__file__).parents[1] / "mount.py"
LOG = logging.getLogger("dpdmd_studio.training")


def test_information_is_shown_as_plain_lines_while_a_command_runs(capsys):
    LOG.info("before")
    with console.shown_by(console.plain_line):
        LOG.info("%d of %d, 100%%", 1, 2)
        LOG.info("as it is: 5%")
        LOG.debug("details")
    LOG.info("after")
    assert capsys.readouterr().err == "1 of 2, 100%\nas it is: 5%\n"
    assert logging.getLogger("dpdmd_studio").level == logging.NOTSET


def test_which_kernel_a_host_samples_with_is_not_a_line_of_a_command(capsys):
    with console.shown_by(console.plain_line):
        logging.getLogger("dpdmd_studio.attention").info("attention on cpu")
    assert capsys.readouterr().err == ""


def test_the_innermost_shows_each_line_once():
    outer: list[str] = []
    inner: list[str] = []
    with console.shown_by(outer.append):
        LOG.info("one")
        with console.shown_by(inner.append):
            LOG.info("two")
        LOG.info("three")
    assert (outer, inner) == (["one", "three"], ["two"])


def test_of_several_processes_the_first_speaks(monkeypatch):
    lines: list[str] = []
    for name, value in (("WORLD_SIZE", "2"), ("RANK", "1"), ("LOCAL_RANK", "0")):
        monkeypatch.setenv(name, value)
    with console.shown_by(lines.append):
        LOG.info("the second")
        monkeypatch.setenv("RANK", "0")
        LOG.info("the first")
        monkeypatch.delenv("RANK")
        with pytest.raises(SettingsError, match="RANK"):
            LOG.info("nobody knows which")
    assert lines == ["the first"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_line_goes_above_the_living_one():
    screen = Terminal()
    with ProgressLine(screen) as line, console.shown_by(line.message):
        line.show(Progress(1, 2, {}, 1.0))
        LOG.info("a line")
    assert "\ra line\n" in screen.getvalue() or "\r\x1b[Aa line\n" in screen.getvalue()


def test_a_program_of_its_own_shows_warnings_as_ever_and_information_only_if_asked():
    program = (
        "import logging, runpy, sys\n"
        "runpy.run_path(sys.argv[1])\n"
        "from dpdmd_studio.cli import console\n"
        "log, other = logging.getLogger('dpdmd_studio.x'), logging.getLogger('other')\n"
        "log.info('a library is quiet')\n"
        "console.show_warnings()\n"
        "with console.shown_by(console.plain_line):\n"
        "    log.info('one'); log.warning('two'); other.info('no'); other.warning('three')\n"
        "log.info('quiet again')\n"
    )
    command = [sys.executable, "-c", program, str(MOUNT)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert (done.stdout, done.stderr) == ("", "one\ntwo\nthree\n")


def test_a_kernel_that_no_run_uses_is_not_asked_for(monkeypatch, capsys):
    for name in ("", console.CPU_KERNEL):
        logger = logging.getLogger(name)
        monkeypatch.setattr(logger, "handlers", [])
        monkeypatch.setattr(logger, "level", logging.WARNING)
        monkeypatch.setattr(logger, "_cache", {})
    console.show_warnings()
    logging.getLogger(console.CPU_KERNEL).warning("pip install kernels")
    logging.getLogger("bitsandbytes").warning("something else")
    assert capsys.readouterr().err == "something else\n"
