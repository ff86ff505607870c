"""Any text as prompt, metadata, path, setting or request gives an answer or one of our errors."""

from __future__ import annotations

import contextlib
import json
import ntpath
import posixpath
import random
import time

import pytest
from dpdmd_studio.app.config.distill_config import DistillConfig
from dpdmd_studio.app.config.request import DistillRequest, ModelFiles
from dpdmd_studio.app.library.path_checks import check_name, typed_path
from dpdmd_studio.app.prompts.expansion import expand
from dpdmd_studio.app.prompts.images import image_prompt
from dpdmd_studio.app.prompts.infotext import infotext_prompts
from dpdmd_studio.app.prompts.reading import parse_line, parse_prompts
from dpdmd_studio.core.errors import DPDMDError
from fuzzing import FIELDS, text, value


@pytest.mark.parametrize("seed", range(4))
def test_any_text_ends_in_an_answer_or_in_one_of_our_errors(seed):
    rng = random.Random(seed)
    request = DistillRequest(
        model=ModelFiles(checkpoint="a"), config=DistillConfig(), output="b"
    ).to_dict()
    for _ in range(150):
        given, name = text(rng, 40), text(rng, 6)
        settings = {rng.choice(("steps", "student_lr", "resolution", "device")): value(rng)}
        fields = {rng.choice(FIELDS): rng.choice((given, json.dumps(value(rng))))}
        damaged = request | {rng.choice(tuple(request)): value(rng)}
        for act in (
            lambda: parse_prompts(given, "p.txt"),  # noqa: B023
            lambda: parse_line(given),  # noqa: B023
            lambda: expand(given, random.Random(0)),  # noqa: B023
            lambda: infotext_prompts(given),  # noqa: B023
            lambda: image_prompt(fields),  # noqa: B023
            lambda: typed_path(name, posixpath),  # noqa: B023
            lambda: typed_path(name, ntpath),  # noqa: B023
            lambda: check_name(name, ntpath),  # noqa: B023
            lambda: DistillConfig.from_dict(settings),  # noqa: B023
            lambda: DistillRequest.from_dict(damaged),  # noqa: B023
        ):
            begin = time.process_time()
            with contextlib.suppress(DPDMDError):
                act()
            assert time.process_time() - begin < 1
