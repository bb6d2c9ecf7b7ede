"""The token store: the right ids in the right rows, once, whole, and never from the beginning again."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ssl_core.config.settings import Settings
from ssl_core.config.tokenizer import TokenizerConfig
from ssl_core.contracts import DatasetRef
from ssl_core.data.dataset import read_info
from ssl_core.data.text import tokens
from ssl_core.data.text.parallel import LostWorker
from ssl_core.data.text.tokenizer import Tokenizer
from ssl_core.data.text.training import train
from ssl_core.errors import TryAgain
from tests.data.remotes import stored_version
from tests.data.text.corpora import PROSE, make_version, write_folder

TEXTS = [f"{PROSE[row % 4]} {row} " * (row % 3) for row in range(30)]  # every third is empty
SPLITS = [("train", "train", "val", "test", "vault")[row % 5] for row in range(30)]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train(PROSE * 3, TokenizerConfig(kind="bpe", size=320))


@pytest.fixture
def ref(tmp_path: Path) -> DatasetRef:
    return make_version(tmp_path, TEXTS, splits=SPLITS)


class Counting:
    """A tokenizer that counts the texts it was given, and fails where it is told to."""

    def __init__(self, tokenizer: Tokenizer, error: BaseException | None = None, after: int = 10**9) -> None:
        self.inner, self.error, self.after = tokenizer, error, after
        self.seen: list[str] = []
        self.digest, self.size = tokenizer.digest, tokenizer.size

    def encode_flat(self, texts: list[str]) -> Any:
        if len(self.seen) >= self.after and self.error:
            raise self.error
        self.seen += texts
        return self.inner.encode_flat(texts)


def open_with(counting: Any, ref: DatasetRef, settings: Settings, **more: Any) -> tokens.Tokens:
    return tokens.open_tokens(ref, settings, counting, **more)


def store_of(settings: Settings) -> Path:
    (folder,) = (settings.cache / "tokens").iterdir()
    return folder


def assert_right(opened: tokens.Tokens, tokenizer: Tokenizer, texts: list[str] = TEXTS) -> None:
    expected = tokenizer.encode(texts)
    assert len(opened) == len(texts)
    assert [opened.ids[a:b].tolist() for a, b in zip(opened.offsets[:-1], opened.offsets[1:], strict=True)] == expected
    assert opened.offsets.dtype == np.int64


def test_ids_and_offsets_are_the_texts_in_manifest_order(
    ref: DatasetRef, settings: Settings, tokenizer: Tokenizer
) -> None:
    opened = tokens.open_tokens(ref, settings, tokenizer)
    assert_right(opened, tokenizer)
    assert opened.ids.dtype == np.uint16
    with pytest.raises(ValueError, match="read-only"):
        opened.ids[0] = 0
    assert opened.table.positions("val").tolist() == opened.positions("val").tolist() == list(range(2, 30, 5))
    assert opened.lengths(np.asarray([0, 1])).tolist() == [0, len(tokenizer.encode(TEXTS)[1])]
    assert opened.table.label_type == "class"
    with pytest.raises(ValueError, match="not a split"):
        opened.positions("tarin")


def test_labels_are_those_of_the_table(tmp_path: Path, settings: Settings, tokenizer: Tokenizer) -> None:
    write_folder(tmp_path / "work", TEXTS, splits=SPLITS)
    labels = [("b", None, "a", None, None, "a", "b")[row % 7] for row in range(len(TEXTS))]
    manifest = tmp_path / "work" / "manifest.parquet"
    table = pq.read_table(manifest).drop_columns("label").append_column("label", pa.array(labels, pa.string()))
    pq.write_table(table, manifest, row_group_size=4)
    info = read_info(tmp_path / "work").model_copy(update={"classes": ["a", "b"]})
    (tmp_path / "work" / "dataset.json").write_text(info.model_dump_json())
    opened = tokens.open_tokens(stored_version(tmp_path / "work", tmp_path / "remote"), settings, tokenizer)
    for split in ("train", "val"):
        positions, numbers = opened.labelled(split)
        assert positions.tolist() == opened.table.positions(split, labelled=True).tolist()
        assert numbers.tolist() == opened.table.labels[positions].tolist()


def test_no_text_has_a_label(ref: DatasetRef, settings: Settings, tokenizer: Tokenizer) -> None:
    opened = tokens.open_tokens(ref, settings, tokenizer)
    assert [part.tolist() for part in opened.labelled("train")] == [[], []]


def test_a_large_vocabulary_needs_four_bytes(ref: DatasetRef, settings: Settings, tokenizer: Tokenizer) -> None:
    large = Counting(tokenizer)
    large.size = 2**16 + 1
    opened = open_with(large, ref, settings)
    assert opened.ids.dtype == np.uint32
    assert_right(opened, tokenizer)


def test_the_second_opening_tokenizes_nothing(ref: DatasetRef, settings: Settings, tokenizer: Tokenizer) -> None:
    counting = Counting(tokenizer)
    open_with(counting, ref, settings)
    assert len(counting.seen) == 30
    assert_right(open_with(counting, ref, settings), tokenizer)
    assert len(counting.seen) == 30
    other = train(PROSE, TokenizerConfig(size=300))
    assert_right(tokens.open_tokens(ref, settings, other), other)  # another tokenizer, another address
    assert len(list((settings.cache / "tokens").iterdir())) == 2


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("a defect")])
@pytest.mark.parametrize("batch", [2, 3, 1024])
def test_a_build_that_was_ended_goes_on_at_its_last_whole_row_group(
    ref: DatasetRef,
    settings: Settings,
    tokenizer: Tokenizer,
    error: BaseException,
    batch: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tokens.read_texts, "__kwdefaults__", {"skip": 0, "rows": batch})
    ended = Counting(tokenizer, error, after=15)
    with pytest.raises(type(error)):
        open_with(ended, ref, settings)
    again = Counting(tokenizer)
    assert_right(open_with(again, ref, settings), tokenizer)
    # Row groups hold four texts: what is done twice is at most the one that was being read.
    assert len(ended.seen) >= 15
    assert len(ended.seen) + len(again.seen) - 30 < 4
    assert again.seen == TEXTS[30 - len(again.seen) :]


def test_a_process_that_is_killed_leaves_what_it_has_done(
    ref: DatasetRef, settings: Settings, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    tokenizer.save(tmp_path / "tokenizer")
    code = f"""
import os, signal, pathlib
from ssl_core.config.settings import Settings
from ssl_core.contracts import DatasetRef
from ssl_core.data.text import tokens
from ssl_core.data.text.parallel import LostWorker
from ssl_core.data.text.tokenizer import Tokenizer
ref = DatasetRef.model_validate_json({ref.model_dump_json()!r})
tokenizer = Tokenizer.load(pathlib.Path({str(tmp_path / "tokenizer")!r}))
plain, seen = tokenizer.encode_flat, []
def killed(texts):
    seen.extend(texts)
    if len(seen) > 18:
        os.kill(os.getpid(), signal.SIGKILL)
    return plain(texts)
tokenizer.encode_flat = killed
tokens.open_tokens(ref, Settings(home={str(settings.home)!r}), tokenizer)
"""
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True)
    assert done.returncode == -9, done.stderr.decode()
    again = Counting(tokenizer)
    assert_right(open_with(again, ref, settings), tokenizer)
    assert again.seen == TEXTS[16:]


def test_two_processes_at_once_make_one_store(
    ref: DatasetRef, settings: Settings, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    tokenizer.save(tmp_path / "tokenizer")
    code = f"""
import pathlib, time
from ssl_core.config.settings import Settings
from ssl_core.contracts import DatasetRef
from ssl_core.data.text import tokens
from ssl_core.data.text.parallel import LostWorker
from ssl_core.data.text.tokenizer import Tokenizer
tokenizer = Tokenizer.load(pathlib.Path({str(tmp_path / "tokenizer")!r}))
plain, seen = tokenizer.encode_flat, []
def slow(texts):
    time.sleep(0.05)
    seen.extend(texts)
    return plain(texts)
tokenizer.encode_flat = slow
opened = tokens.open_tokens(DatasetRef.model_validate_json({ref.model_dump_json()!r}), Settings(home={str(settings.home)!r}), tokenizer)
print(len(seen), len(opened), int(opened.offsets[-1]))
"""
    runs = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    lines = [run.communicate()[0].split() for run in runs]
    total = str(sum(map(len, tokenizer.encode(TEXTS))))
    assert sorted(lines) == [["0", "30", total], ["30", "30", total]]


@pytest.mark.parametrize("name", ["ids.bin", "offsets.bin", "units.jsonl"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "grow", "removed", "empty"])
def test_a_damaged_store_is_mended(
    ref: DatasetRef, settings: Settings, tokenizer: Tokenizer, name: str, damage: str
) -> None:
    tokens.open_tokens(ref, settings, tokenizer)
    path = store_of(settings) / name
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[len(data) * 2 // 3] ^= 1
        path.write_bytes(data)
    elif damage == "truncate":
        os.truncate(path, len(data) // 2)
    elif damage == "grow":
        path.write_bytes(data + b"x")
    elif damage == "empty":
        os.truncate(path, 0)
    else:
        path.unlink()
    counting = Counting(tokenizer)
    assert_right(open_with(counting, ref, settings), tokenizer)
    assert len(counting.seen) < 30 or damage in ("removed", "empty")  # its sound beginning is kept
    assert [p.name for p in (settings.cache / "tokens").iterdir()] == [store_of(settings).name]
    assert_right(tokens.open_tokens(ref, settings, tokenizer), tokenizer)


def test_a_damaged_unfinished_build_goes_on_before_the_damage(
    ref: DatasetRef, settings: Settings, tokenizer: Tokenizer
) -> None:
    with pytest.raises(RuntimeError):
        open_with(Counting(tokenizer, RuntimeError(), after=20), ref, settings)
    path = store_of(settings) / "ids.bin"
    data = bytearray(path.read_bytes())
    data[int(len(data) * 0.6)] ^= 1
    path.write_bytes(data)
    counting = Counting(tokenizer)
    assert_right(open_with(counting, ref, settings), tokenizer)
    assert 10 < len(counting.seen) < 30


def test_told_to_stop_it_ends_and_goes_on_later(ref: DatasetRef, settings: Settings, tokenizer: Tokenizer) -> None:
    stop = threading.Event()
    counting = Counting(tokenizer)
    plain = counting.encode_flat

    def stopping(texts: list[str]) -> Any:
        if len(counting.seen) >= 8:
            stop.set()
        return plain(texts)

    counting.encode_flat = stopping  # type: ignore[method-assign]
    with pytest.raises(TryAgain, match="stopped"):
        open_with(counting, ref, settings, stop=stop)
    again = Counting(tokenizer)
    assert_right(open_with(again, ref, settings), tokenizer)
    assert len(counting.seen) + len(again.seen) == 30


def test_a_full_disk_is_an_error_and_leaves_nothing(ref: DatasetRef, settings: Settings, tokenizer: Tokenizer) -> None:
    full = Counting(tokenizer, OSError(errno.ENOSPC, "No space left on device"), after=12)
    with pytest.raises(TryAgain, match="no space left"):
        open_with(full, ref, settings)
    assert list((settings.cache / "tokens").iterdir()) == []
    assert_right(tokens.open_tokens(ref, settings, tokenizer), tokenizer)


@pytest.mark.parametrize(
    ("shards", "manifest", "message"), [(29, 30, "more samples than the shards"), (30, 29, "different samples")]
)
def test_shards_and_manifest_must_agree(
    tmp_path: Path, settings: Settings, tokenizer: Tokenizer, shards: int, manifest: int, message: str
) -> None:
    write_folder(tmp_path / "a", TEXTS[:manifest], shard=100)
    write_folder(tmp_path / "b", TEXTS[:shards], shard=100)
    shutil.copy(tmp_path / "b/data-00000.parquet", tmp_path / "a/data-00000.parquet")
    with pytest.raises(TryAgain, match=message):
        tokens.open_tokens(stored_version(tmp_path / "a", tmp_path / "remote"), settings, tokenizer)
    assert list((settings.cache / "tokens").iterdir()) == []


@pytest.mark.parametrize("texts", [[], [""], ["", ""], ["one text"]])
def test_hardly_any_text(tmp_path: Path, settings: Settings, tokenizer: Tokenizer, texts: list[str]) -> None:
    ref = make_version(tmp_path, texts)
    for _ in range(2):
        assert_right(tokens.open_tokens(ref, settings, tokenizer), tokenizer, texts)


def test_long_texts_are_stored_whole(tmp_path: Path, settings: Settings, tokenizer: Tokenizer) -> None:
    texts = ["the plot of the film " * 20_000, "x", "y" * 200_000]
    opened = tokens.open_tokens(make_version(tmp_path, texts), settings, tokenizer)
    assert_right(opened, tokenizer, texts)
    assert tokenizer.decode(opened.ids[: opened.offsets[1]]) == texts[0]


def test_several_processes_write_the_same_store(
    ref: DatasetRef, settings: Settings, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens.open_tokens(ref, settings, tokenizer)
    alone = {path.name: path.read_bytes() for path in store_of(settings).iterdir()}
    shutil.rmtree(store_of(settings))
    monkeypatch.setattr(tokens, "_WORTH_WORKERS", 1)
    monkeypatch.setattr(tokens, "usable_cpus", lambda: 2)
    assert_right(tokens.open_tokens(ref, settings, tokenizer), tokenizer)
    assert {path.name: path.read_bytes() for path in store_of(settings).iterdir()} == alone


def test_a_lost_process_leaves_what_is_done(
    ref: DatasetRef, settings: Settings, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def losing(batches: Any, *more: Any) -> Any:
        for number, (ends, texts) in enumerate(batches):
            if number == 3:
                raise LostWorker("lost")
            ids, lengths = tokenizer.encode_flat(texts)
            yield ends, (ids.astype(np.uint16), lengths)

    with monkeypatch.context() as patch:
        patch.setattr(tokens, "encode_batches", losing)
        with pytest.raises(TryAgain, match="lost"):
            tokens.open_tokens(ref, settings, tokenizer)
    again = Counting(tokenizer)
    assert_right(open_with(again, ref, settings), tokenizer)
    assert again.seen == TEXTS[12:]


@pytest.mark.parametrize("most", [1, 7, 10**6])
def test_blocks_are_the_store_piece_by_piece(
    ref: DatasetRef, settings: Settings, tokenizer: Tokenizer, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = tokens.open_tokens(ref, settings, tokenizer)
    monkeypatch.setattr(tokens, "_BLOCK_TOKENS", most)
    for texts in (1, 4, 100):
        monkeypatch.setattr(tokens, "_BLOCK_TEXTS", texts)
        ids, lengths = zip(*opened.blocks(), strict=True)
        assert np.concatenate(ids).tolist() == opened.ids.tolist()
        assert np.concatenate(lengths).tolist() == np.diff(opened.offsets).tolist()
        assert all(len(one) <= most or np.count_nonzero(row) == 1 for one, row in zip(ids, lengths, strict=True))


def test_progress_counts_every_text_once(ref: DatasetRef, settings: Settings, tokenizer: Tokenizer) -> None:
    from tests.data.text.bars import Bars

    with pytest.raises(RuntimeError):
        open_with(Counting(tokenizer, RuntimeError(), after=9), ref, settings)
    bars = Bars()
    open_with(Counting(tokenizer), ref, settings, progress=bars)
    assert bars.sums["tokenize"] == (30, 30)
    assert any("going on after 12 of 30" in note for note in bars.notes)


def test_the_journal_is_readable(ref: DatasetRef, settings: Settings, tokenizer: Tokenizer) -> None:
    tokens.open_tokens(ref, settings, tokenizer)
    lines = [json.loads(line) for line in (store_of(settings) / "units.jsonl").read_text().splitlines()]
    assert [line["rows"] for line in lines] == [4, 4, 4, 4, 4, 4, 4, 2]
