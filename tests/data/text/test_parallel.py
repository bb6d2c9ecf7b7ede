"""Several processes give what one gives, in order; a lost one is told; none outlives the process that began it."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ssl_core.config.tokenizer import TokenizerConfig
from ssl_core.data.text.parallel import LostWorker, encode_batches
from ssl_core.data.text.tokenizer import Tokenizer
from ssl_core.data.text.training import train
from tests.data.text.corpora import PROSE

KIND = np.dtype(np.uint16)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train(PROSE, TokenizerConfig(size=300, added=("plot",)))


def batches(count: int) -> Iterator[tuple[int, list[str]]]:
    for number in range(count):
        yield number, [f"{PROSE[number % 4]} [MASK] {number}"] * (number % 3)


def test_workers_give_what_one_process_gives(tokenizer: Tokenizer) -> None:
    alone = list(encode_batches(batches(20), tokenizer, KIND, 1))
    together = list(encode_batches(batches(20), tokenizer, KIND, 2))
    assert [name for name, _ in together] == [name for name, _ in alone] == list(range(20))
    for (_, (ids, lengths)), (_, (other_ids, other_lengths)) in zip(together, alone, strict=True):
        assert ids.dtype == other_ids.dtype == KIND
        assert lengths.dtype == np.int64
        assert ids.tolist() == other_ids.tolist()
        assert lengths.tolist() == other_lengths.tolist()


def test_a_tokenizer_that_was_sent_away_is_the_same(tokenizer: Tokenizer) -> None:
    sent = pickle.loads(pickle.dumps(tokenizer))
    text = ["a [MASK] of plot [SEP]"]
    assert sent.digest == tokenizer.digest
    assert sent.encode(text) == tokenizer.encode(text)
    assert not {sent.mask_id, sent.sep_id} & set(sent.encode(text)[0])


def test_a_killed_worker_is_told_and_the_others_end(tokenizer: Tokenizer) -> None:
    before = set(multiprocessing.active_children())

    def killing() -> Iterator[tuple[int, list[str]]]:
        for name, texts in batches(100):
            if name == 10:
                for child in set(multiprocessing.active_children()) - before:
                    os.kill(child.pid or 0, signal.SIGKILL)
            yield name, texts

    with pytest.raises(LostWorker, match="killed, or out of memory"):
        list(encode_batches(killing(), tokenizer, KIND, 2))
    assert set(multiprocessing.active_children()) <= before


def test_workers_end_with_a_killed_parent(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(f"""
import multiprocessing, os, signal, sys
import numpy as np
from ssl_core.config.tokenizer import TokenizerConfig
from ssl_core.data.text.parallel import encode_batches
from ssl_core.data.text.training import train
def batches():
    for number in range(50):
        yield number, ["a text"]
if __name__ == "__main__":
    tokenizer = train({PROSE!r}, TokenizerConfig(size=300))
    encoded = encode_batches(batches(), tokenizer, np.dtype(np.uint16), 2)
    next(encoded)
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
""")
    done = subprocess.run([sys.executable, str(script)], stdout=subprocess.PIPE, text=True, check=False)
    assert done.returncode == -signal.SIGKILL
    workers = [int(pid) for pid in done.stdout.split()]
    assert len(workers) == 2
    deadline = time.monotonic() + 10
    while any(map(runs, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(runs, workers))


def runs(pid: int) -> bool:
    """Whether a process is there, and not only its entry in the table."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
