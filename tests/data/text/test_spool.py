"""Where texts wait: what was written is read back, bad texts leave nothing, and cuts lose nothing."""

from __future__ import annotations

import errno
import subprocess
import sys
import tracemalloc
import unicodedata
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssl_core.data.text.spool import BadText, Spool, cut
from ssl_core.errors import TryAgain

PIECES = st.lists(st.text("ab \n這e\u0301👍\U0001f3fd\u200d🇩🇪\u1112\u1161", max_size=60), max_size=6)
FAMILY = "👩\u200d👩\u200d👧"


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path)


def add(spool: Spool, *pieces: str, most: int = 1000) -> int:
    return spool.add(pieces, most, "auto")


# ---- written and read


def test_texts_are_read_back_by_their_number(spool: Spool) -> None:
    texts = ["one", "這部電影很好看。", "e\u0301te\u0301 " + FAMILY, " blanks stay \n"]
    assert [add(spool, text) for text in texts] == [1] * 4
    spool.finish()
    assert len(spool) == 4
    assert [spool.read(number).decode() for number in (3, 1, 0, 2)] == [texts[i] for i in (3, 1, 0, 2)]


def test_a_text_in_pieces_is_one_text(spool: Spool) -> None:
    assert add(spool, "o", "", "n", "e") == 1
    spool.finish()
    assert spool.read(0) == b"one"


def test_a_long_text_is_several_parts(spool: Spool) -> None:
    whole = " ".join(f"word{i}" for i in range(100))
    count = add(spool, "before") + add(spool, whole, most=100) + add(spool, "behind")
    spool.finish()
    assert count == len(spool) > 8
    parts = [spool.read(number).decode() for number in range(count)]
    assert (parts[0], parts[-1]) == ("before", "behind")
    assert "".join(parts[1:-1]) == whole


@pytest.mark.parametrize("pieces", [[], [""], [" ", "\n\t"], [" " * 500]])
def test_a_blank_text_is_one_empty_part(pieces: list[str], spool: Spool) -> None:
    assert add(spool, *pieces, most=100) == 1
    assert add(spool, "behind") == 1
    spool.finish()
    assert [spool.read(number) for number in range(2)] == [b"", b"behind"]


def test_blank_parts_of_a_long_text_are_none(spool: Spool) -> None:
    assert add(spool, "a" + " " * 500 + "b", most=100) == 2
    spool.finish()
    assert [spool.read(number).strip() for number in range(2)] == [b"a", b"b"]


def test_a_number_may_have_no_text(spool: Spool) -> None:
    spool.add_none()
    add(spool, "one")
    spool.add_none()
    spool.finish()
    assert [spool.read(number) for number in range(3)] == [b"", b"one", b""]


def test_threads_read_at_the_same_time(spool: Spool) -> None:
    texts = [f"text {i} " * (i % 50 + 1) for i in range(400)]
    for text in texts:
        add(spool, text)
    spool.finish()
    order = [i * 7919 % 400 for i in range(4000)]
    with ThreadPoolExecutor(8) as pool:
        assert [data.decode() for data in pool.map(spool.read, order)] == [texts[i] for i in order]


# ---- bad texts


@pytest.mark.parametrize(
    ("pieces", "reason", "line"),
    [
        (["one\ntwo\nthr\0ee"], "a NUL character", 3),
        (["one\nca", "f\udce9\nthree"], "not UTF-8 (byte 0xe9); name the file's encoding in data.encoding", 2),
        (["\udcff"], "not UTF-8 (byte 0xff); name the file's encoding in data.encoding", 1),
        (["line\n" * 100, "b\ud800d"], "half of a surrogate pair", 101),
    ],
)
@pytest.mark.parametrize("most", [1000, 7])
def test_a_bad_text_names_the_line_and_leaves_nothing(
    pieces: list[str], reason: str, line: int, most: int, spool: Spool
) -> None:
    add(spool, "before")
    with pytest.raises(BadText) as caught:
        add(spool, *pieces, most=most)
    assert str(caught.value) == reason
    assert caught.value.line == line
    assert len(spool) == 1
    add(spool, "behind")
    spool.finish()
    assert [spool.read(number) for number in range(2)] == [b"before", b"behind"]


# ---- nothing is left behind


def open_files(folder: Path) -> list[str]:
    return [str(path) for path in folder.rglob("*") if path.is_file()]


def test_the_file_has_no_name(spool: Spool, tmp_path: Path) -> None:
    add(spool, "text " * 1_000_000, most=100_000)
    spool.finish()
    assert open_files(tmp_path) == []
    assert spool.read(0).startswith(b"text")


def test_a_process_that_is_killed_leaves_nothing(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; from ssl_core.data.text.spool import Spool;"
        "spool = Spool(Path(sys.argv[1])); spool.add(['text ' * 1000000], 10000, 'auto'); spool.finish();"
        "assert spool.read(0); os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False).returncode == -9
    assert [path.name for path in tmp_path.rglob("*")] == ["spool"]


def test_a_full_disk_is_said_with_its_place(spool: Spool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def write(self, data: bytes) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(spool, "_file", Full())
    with pytest.raises(TryAgain, match="no space left") as caught:
        add(spool, "one")
    assert str(tmp_path / "spool") in str(caught.value)
    assert "ssl-core gc" in caught.value.next_step


def test_a_cache_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "spool").write_text("in the way")
    with pytest.raises(TryAgain) as caught:
        Spool(tmp_path)
    assert caught.value.place == str(tmp_path / "spool")


def test_a_text_of_50_mb_passes_in_little_memory(spool: Spool) -> None:
    def pieces() -> Iterator[str]:
        for _ in range(500):
            yield "word " * 20_000

    tracemalloc.start()
    count = spool.add(pieces(), 1_000_000, "auto")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    spool.finish()
    assert count >= 50
    assert sum(len(spool.read(number)) for number in range(count)) == 50_000_000
    assert peak < 12 * 2**20


# ---- cuts


def drawn_apart(left: str, right: str) -> bool:
    """Whether a cut between the two leaves both as they were: the slow reference, for signs of one code point and their marks."""
    return not (
        unicodedata.combining(right[0])
        or right[0] == "\u200d"
        or left[-1] == "\u200d"
        or right[0] == "\U0001f3fd"
        or ("\U0001f1e6" <= left[-1] <= "\U0001f1ff" and "\U0001f1e6" <= right[0] <= "\U0001f1ff")
        or right[0] == "\u1161"
    )


@settings(deadline=None)
@given(PIECES, st.integers(1, 40))
def test_no_cut_loses_anything_or_is_too_long(pieces: list[str], most: int) -> None:
    parts = list(cut(pieces, most))
    assert "".join(parts) == "".join(pieces)
    assert all(0 < len(part) <= most for part in parts)


@settings(deadline=None)
@given(PIECES, st.integers(1, 40))
def test_the_pieces_make_no_difference(pieces: list[str], most: int) -> None:
    assert list(cut(pieces, most)) == list(cut(["".join(pieces)], most))


@pytest.mark.parametrize(
    ("make", "sign"),
    [
        (lambda n: "a" * n, "e\u0301"),
        (lambda n: "這" * n, FAMILY),
        (lambda n: "a" * n, "👍\U0001f3fd"),
        (lambda n: "a" * n, "🇩🇪"),
        (lambda n: "가" * n, "\u1112\u1161"),
        (lambda n: "a" * n, "न\u093f"),
        (lambda n: "a" * n, "☀\ufe0f"),
    ],
)
def test_what_is_drawn_as_one_is_not_cut(make: Callable[[int], str], sign: str) -> None:
    for before in range(90, 101):
        text = make(before) + sign + "b" * 150
        parts = list(cut([text], 100))
        assert "".join(parts) == text
        assert any(sign in part for part in parts), before


@settings(deadline=None)
@given(st.text("ab這e\u0301👍\U0001f3fd\u200d\u1112\u1161", max_size=100).filter(lambda text: len(text) > 1))
def test_cuts_lie_between_signs_wherever_there_is_room(text: str) -> None:
    parts = list(cut(["x" * 200 + text + "y" * 200], 100))
    runs = pairwise(parts)
    assert all(drawn_apart(left, right) or not any(map(drawn_apart, left[-64:-1], left[-63:])) for left, right in runs)


@pytest.mark.parametrize(
    ("first", "rest"),
    [
        ("a" * 92 + "\n", "b c" + "d" * 50),
        ("a" * 92 + " \n", " " + "b" * 50),
        ("a" * 95 + " ", "b" * 50),
        ("a" * 50 + "\n" + "b" * 49, "b" * 50),  # a line end far back is no reason
    ],
)
def test_a_cut_prefers_a_line_end_then_a_blank(first: str, rest: str) -> None:
    assert list(cut([first + rest], 100)) == [first, rest]


def test_a_text_that_just_fits_is_one_part() -> None:
    assert list(cut(["a" * 100], 100)) == ["a" * 100]
    assert list(cut(["a" * 99, "b"], 100)) == ["a" * 99 + "b"]
    assert [len(part) for part in cut(["a" * 101], 100)] == [100, 1]


def test_marks_without_end_are_cut_all_the_same() -> None:
    text = "a" + "\u0301" * 500
    parts = list(cut([text], 100))
    assert "".join(parts) == text
    assert [len(part) for part in parts] == [100] * 5 + [1]
