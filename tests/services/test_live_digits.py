"""The digits that arrive: which, in which window, and the project that they are for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ssl_core.config.load import load_project
from ssl_core.errors import UserError
from ssl_core.services import live_digits


def test_no_image_comes_twice_and_only_the_shifted_windows_are_of_another_world() -> None:
    windows = [live_digits.pictures(window) for window in range(1 + len(live_digits.WINDOWS))]
    assert [len(window) for window in windows] == [live_digits.FIRST] + [live_digits.EACH] * len(live_digits.WINDOWS)
    names = [picture.name.partition("-")[2] for window in windows for picture in window]
    assert len(set(names)) == len(names)
    assert {picture.label for picture in windows[0]} == set("0123456789")
    brightness = [np.mean([picture.pixels.mean() for picture in window]) for window in windows]
    quiet, shifted = brightness[:4], brightness[4:]
    assert max(quiet) < 1.15 * min(quiet)
    assert min(shifted) > 1.3 * max(quiet)


def test_a_window_put_in_place_again_is_the_same_files(tmp_path: Path) -> None:
    assert live_digits.arrive(tmp_path, 4) == live_digits.EACH
    before = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*.png")}
    assert len(before) == live_digits.EACH
    next(tmp_path.rglob("*.png")).unlink()
    live_digits.arrive(tmp_path, 4)
    assert {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*.png")} == before


def test_the_project_file_is_a_valid_one_and_nobody_elses_is_touched(tmp_path: Path) -> None:
    path = live_digits.write_project(tmp_path / "projects", tmp_path / "data: with #")
    project = load_project(path)
    assert (project.name, project.data.source) == (live_digits.NAME, str(tmp_path / "data: with #"))
    assert live_digits.write_project(tmp_path / "projects", tmp_path / "other") == path
    assert load_project(path).data.source == str(tmp_path / "other")
    path.write_text("name: digits-live\n# mine\n")
    with pytest.raises(UserError, match="not the demo's own"):
        live_digits.write_project(tmp_path / "projects", tmp_path)
    assert path.read_text() == "name: digits-live\n# mine\n"
