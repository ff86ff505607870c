"""The sheet of arms and seeds: every picture in its place, at a size that can be looked at."""

from __future__ import annotations

import numpy as np
from dpdmd_studio.core.images import seed_sheet as module
from dpdmd_studio.core.images.seed_sheet import BACKGROUND, Row, seed_sheet
from PIL import Image

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def plain(colour: tuple[int, int, int], height: int = 200, width: int = 200) -> np.ndarray:
    return np.full((height, width, 3), colour, np.uint8)


def boxes(sheet: Image.Image, colour: tuple[int, int, int]) -> list[tuple[int, int, int, int]]:
    """(left, top, width, height) of everything in that very colour, as one box."""
    down, right = np.nonzero((np.asarray(sheet) == colour).all(axis=-1))
    left, top = int(right.min()), int(down.min())
    return [(left, top, int(right.max()) - left + 1, int(down.max()) - top + 1)]


def test_rows_are_arms_and_columns_are_seeds():
    rows = [
        Row("one", "facts", [plain(RED), plain(GREEN)]),
        Row("two", "facts", [plain(BLUE), plain((9, 9, 9))]),
    ]
    sheet = seed_sheet(rows, [4, 5])
    ((x_red, y_red, *size_red),) = boxes(sheet, RED)
    ((x_green, y_green, *size_green),) = boxes(sheet, GREEN)
    ((x_blue, y_blue, *size_blue),) = boxes(sheet, BLUE)
    assert size_red == size_green == size_blue == [200, 200]
    assert x_red == x_blue and x_green > x_red + 200 - 1
    assert y_red == y_green and y_blue > y_red + 200 - 1
    assert sheet.width - (x_green + 200) == x_red  # the same margin on both sides


def test_labels_stand_above_their_row_and_long_ones_are_cut_off():
    rows = [Row("two\nlines " + "x" * 2000, "Öl, 日本", [plain(RED)]), Row("", "", [plain(BLUE)])]
    pixels = np.asarray(seed_sheet(rows, [0]))
    ((left, top, width, _),) = boxes(Image.fromarray(pixels), RED)
    ((_, lower_top, _, _),) = boxes(Image.fromarray(pixels), BLUE)
    above = pixels[top // 3 : top]
    assert (above != BACKGROUND).any()  # seed, label and facts
    assert (pixels[:, left + width :] == BACKGROUND).all()  # nothing runs out at the right
    between = pixels[top + 200 : lower_top]
    assert (between == BACKGROUND).all()  # empty labels draw nothing


def test_small_pictures_are_enlarged_without_mixing_their_pixels():
    checks = (np.indices((64, 64)).sum(axis=0) % 2 * 255).astype(np.uint8)
    sheet = seed_sheet([Row("", "", [np.repeat(checks[..., None], 3, axis=2)])], [0])
    assert {*np.unique(np.asarray(sheet)[80:100, 20:60])} == {0, 255}
    assert sheet.width == 2 * 64 + 12


def test_a_sheet_never_grows_beyond_what_programs_open(monkeypatch):
    monkeypatch.setattr(module, "MAX_SIDE", 800)
    rows = [Row("a", "b", [plain(RED, 300, 400)] * 4)] * 3
    sheet = seed_sheet(rows, range(4))
    assert max(sheet.size) <= 850
    assert sheet.width > 0.9 * 800  # and is not smaller than it must be


def test_arms_of_another_size_keep_their_shape():
    rows = [Row("a", "", [plain(RED)]), Row("b", "", [plain(BLUE, 200, 100)])]
    ((_, _, width, height),) = boxes(seed_sheet(rows, [0]), BLUE)
    assert (width, height) == (100, 200)
