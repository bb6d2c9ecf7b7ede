"""One pass over a listing: fetches what has no copy yet, in parallel, as far as it gets."""

from __future__ import annotations

import threading
import time
import uuid
from collections import deque
from collections.abc import Iterable
from functools import partial

from ssl_core.data.layout import Refused, too_large
from ssl_core.data.s3_bucket import THREADS, Bucket, Changed, Gone, S3Object
from ssl_core.data.s3_copies import SMALL, Copies, parts
from ssl_core.errors import TryAgain
from ssl_core.step import Bar, Progress

GONE = "it was removed from the bucket while it was being read"
RESTLESS = "it changed again and again while it was being read"
_LOOKS = 3
_TICK_SECONDS = 0.1
_WAITING = 2000
_STOP_SECONDS = 2.0


class Sync:
    """``current`` is the listing as it turned out: an object that changed meanwhile is there as it is now, and one that is gone
    or cannot be read has its reason in ``refused``."""

    def __init__(
        self, bucket: Bucket, copies: Copies, wanted: Iterable[S3Object], most_bytes: int | None = None
    ) -> None:
        self._bucket = bucket
        self._most_bytes = most_bytes
        self._copies = copies
        self.current = {one.key: one for one in wanted}
        self.refused: dict[str, str] = {}
        self.fetched: set[str] = set()
        """Keys of the objects that had no copy."""
        self.bytes = 0
        self._looks: dict[str, int] = {}
        self._queue: deque[tuple[S3Object, int]] = deque()
        """Objects, and where in them a part starts."""
        self._small: deque[tuple[S3Object, bytes]] = deque()
        """Arrived, and not kept yet."""
        self._shown = 0
        self._lock = threading.Lock()
        self._error: BaseException | None = None
        self._end = threading.Event()

    def run(self, progress: Progress, stop: threading.Event, threads: int = THREADS) -> None:
        """Returns when every object has a copy or a reason. What arrived stays, however this ends.

        Raises ``TryAgain`` where told to stop or S3 does not answer, ``UserError`` where it refuses.
        """
        missing = self._copies.missing(self.current.values())
        if not missing:
            return
        self._copies.prepare()
        self._queue.extend((one, start) for one in missing for start, _ in parts(one))
        workers = [
            threading.Thread(target=self._work, name=f"s3-{number}", daemon=True)
            for number in range(min(threads, len(self._queue)))
        ]
        with progress.bar("fetch from S3", len(missing), "objects") as bar:
            try:
                for worker in workers:
                    worker.start()
                self._follow(workers, bar, stop)
            finally:
                self._give_up(workers)
                self._keep(bar)
        if self._error is not None:
            raise self._error

    # ---- this thread: keeps what arrives, shows how far it is

    def _follow(self, workers: list[threading.Thread], bar: Bar, stop: threading.Event) -> None:
        working = workers
        while working and not self._end.is_set():
            if stop.is_set():
                raise TryAgain(
                    "told to stop while fetching from S3",
                    place=self._bucket.url,
                    next_step="run the same command again; what has arrived is not fetched again",
                )
            working[0].join(_TICK_SECONDS)
            working = [worker for worker in working if worker.is_alive()]
            self._keep(bar)

    def _keep(self, bar: Bar) -> None:
        arrived = [self._small.popleft() for _ in range(len(self._small))]
        if arrived:
            self._copies.add_small(arrived)
            self.fetched |= {one.key for one, _ in arrived}
        done = len(self.fetched) + len(self.refused)
        if done > self._shown:
            bar.advance(done - self._shown, MB=round(self.bytes / 1e6, 1))
            self._shown = done

    def _give_up(self, workers: list[threading.Thread]) -> None:
        """A worker may wait for bytes that do not come, or until it may try again: nobody waits for it longer than this."""
        self._end.set()
        if any(worker.is_alive() for worker in workers):
            self._bucket.close_connections()
        deadline = time.monotonic() + _STOP_SECONDS
        for worker in workers:
            if worker.ident is not None:
                worker.join(max(0.0, deadline - time.monotonic()))

    # ---- the workers

    def _work(self) -> None:
        own = uuid.uuid4().hex
        try:
            while not self._end.is_set():
                try:
                    wanted, start = self._queue.popleft()
                except IndexError:
                    return
                self._do(wanted, start, own)
        except BaseException as error:
            with self._lock:
                if not self._end.is_set():
                    self._error = error
                    self._end.set()

    def _do(self, wanted: S3Object, start: int, own: str) -> None:
        if self.current.get(wanted.key) is not wanted or wanted.key in self.refused:
            return  # a part of what has changed since
        try:
            if wanted.size <= SMALL:
                while len(self._small) > _WAITING and not self._end.is_set():
                    time.sleep(_TICK_SECONDS / 10)  # the disk is slower than the network: memory must not follow
                data = self._bucket.get(wanted)
                self._small.append((wanted, data))
                self._count(len(data))
            elif self._copies.add_part(wanted, start, own, partial(self._get, wanted)):
                self.fetched.add(wanted.key)
        except (Gone, Changed) as error:
            self._look_again(wanted, error)
        except Refused as error:
            self.refused[wanted.key] = str(error)

    def _get(self, wanted: S3Object, start: int, end: int) -> bytes:
        data = self._bucket.get(wanted, start, end)
        self._count(len(data))
        return data

    def _count(self, size: int) -> None:
        with self._lock:
            self.bytes += size

    def _look_again(self, wanted: S3Object, error: Gone | Changed) -> None:
        with self._lock:
            if self.current[wanted.key] is not wanted:
                return
            looks = self._looks[wanted.key] = self._looks.get(wanted.key, 0) + 1
            try:
                if isinstance(error, Gone):
                    raise error
                now = self._bucket.look(wanted.key)
            except Gone:
                self.refused[wanted.key] = GONE
                return
            reason = RESTLESS if looks > _LOOKS else too_large(now.size, self._most_bytes)
            if reason:
                self.refused[wanted.key] = reason
                return
            self.current[wanted.key] = now
            self._queue.extend((now, start) for start, _ in parts(now))
