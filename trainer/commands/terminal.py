"""Progress on a terminal: a living line with time left, losses and memory; else plain lines."""

from __future__ import annotations

import contextlib
import sys
import time
from datetime import timedelta
from typing import TextIO

from tqdm import tqdm

from ..training.loop import Progress

PLAIN_INTERVAL_SECONDS = 15.0
SHOWN = {
    "diversity_loss": "div",
    "matching_gradient": "dmd",
    "fake_loss": "fake",
    "score_cosine": "cos",
}


class ProgressLine(contextlib.AbstractContextManager["ProgressLine"]):
    """A tqdm bar where there is a terminal, a line every 15 seconds where there is none."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._bar: tqdm | None = None
        self._last = 0.0

    def message(self, text: str) -> None:
        """Print a line of text without disturbing the bar."""
        if self._bar is not None:
            tqdm.write(text, file=self._stream)
        else:
            self._stream.write(text + "\n")
            self._stream.flush()

    def show(self, progress: Progress) -> None:
        """Show one finished update."""
        if self._stream.isatty():
            if self._bar is None:
                self._bar = tqdm(
                    total=progress.steps,
                    initial=progress.step - 1,  # a resumed run begins in the middle
                    unit="update",
                    file=self._stream,
                )
            self._bar.n = progress.step
            self._bar.set_postfix_str(_losses(progress), refresh=False)
            self._bar.refresh()
            return
        now = time.monotonic()
        if progress.step == progress.steps or now - self._last >= PLAIN_INTERVAL_SECONDS:
            self._last = now
            left = timedelta(seconds=int(progress.seconds_left))
            self.message(
                f"update {progress.step}/{progress.steps}, {left} left, "
                f"{progress.seconds_per_step:.2f} s each, {_losses(progress)}"
            )

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()


def _losses(progress: Progress) -> str:
    metrics = progress.metrics
    parts = [f"{short} {metrics[name]:.3f}" for name, short in SHOWN.items() if name in metrics]
    memory = metrics.get("memory_bytes")
    return " ".join(parts + ([f"mem {memory / 2**30:.1f} GB"] if memory else []))
