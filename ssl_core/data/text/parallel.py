"""Encodes batch after batch of texts, in several processes where that pays; what comes out does not depend on how many.

Encoding word by word is Python's own work, which threads would only take turns at.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Protocol, TypeVar

import numpy as np

MOST_WORKERS = 16
"""One process reads and writes for all of them."""

Name = TypeVar("Name")
Encoded = tuple[np.ndarray, np.ndarray]
"""Ids of all texts of a batch one after the other ``(T,)``, and the number of each text's ids, int64 ``(N,)``."""


class LostWorker(Exception):
    """A process that encodes has ended without being told to: killed, or out of memory."""


class Encodes(Protocol):
    """What is asked of a tokenizer; for several workers it has to be picklable, too."""

    def encode_flat(self, texts: Sequence[str]) -> Encoded: ...


def encode_batches(
    batches: Iterable[tuple[Name, list[str]]], tokenizer: Encodes, kind: np.dtype, workers: int
) -> Generator[tuple[Name, Encoded], None, None]:
    """Each batch's name with its ids, of type ``kind``, in the order of ``batches``, which is read a few batches ahead.

    With fewer than two workers all happens in this process, at the time that it is asked for. The workers end when the generator
    is closed, or when this process ends, however it does. Raises ``LostWorker``.
    """
    if workers < 2:
        for name, texts in batches:
            ids, lengths = tokenizer.encode_flat(texts)
            yield name, (ids.astype(kind), lengths)
        return
    workers = min(workers, MOST_WORKERS)
    # Not forked: threads of this process may hold locks.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_begin, initargs=(tokenizer, kind))
    ahead: deque[tuple[Name, Future[Encoded]]] = deque()
    try:
        for name, texts in batches:
            ahead.append((name, pool.submit(_encode, texts)))
            if len(ahead) > workers + 2:
                yield _first(ahead)
        while ahead:
            yield _first(ahead)
    except BrokenProcessPool as error:
        raise LostWorker("a process that was tokenizing has ended: killed, or out of memory") from error
    finally:
        pool.shutdown(cancel_futures=True)


def _first(ahead: deque[tuple[Name, Future[Encoded]]]) -> tuple[Name, Encoded]:
    name, future = ahead.popleft()
    return name, future.result()


# ---- in a worker

_tokenizer: Encodes
_kind: np.dtype


def _begin(tokenizer: Encodes, kind: np.dtype) -> None:
    global _tokenizer, _kind
    _tokenizer, _kind = tokenizer, kind
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # each worker is one thread
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all of them; the first process decides
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A parent that is killed says nothing, and its workers would wait for it forever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _encode(texts: list[str]) -> Encoded:
    ids, lengths = _tokenizer.encode_flat(texts)
    return ids.astype(_kind), lengths
