"""The log of what a served model answered: Parquet files in a folder or in S3, which the monitor reads. Travels inside the model.

A model that answers must not wait for its log, and never fail because of it: rows are held in memory and written as a new file by
a thread, every ``SECONDS`` or ``ROWS`` rows. What cannot be written is held, up to ``MOST_HELD`` rows, and told in the process's log.
No byte of a request is stored: its SHA-256 is, so that a label that comes later can be joined to it.
"""

from __future__ import annotations

import atexit
import hashlib
import logging
import os
import re
import signal
import threading
import uuid
from collections import deque
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

VARIABLE = "SSL_PREDICTION_LOG"
"""Environment variable of the serving process: a folder or ``s3://bucket/prefix``. Unset: nothing is logged."""
ROWS = 1000
SECONDS = 60.0
MOST_HELD = 20_000
_LAST_SECONDS = 5.0
_LOG = logging.getLogger("ssl_core.prediction_log")


def schema() -> pa.Schema:
    """The columns of a log. Others may stand beside them."""
    import pyarrow as pa

    return pa.schema([
        pa.field("id", pa.string(), nullable=False), pa.field("at", pa.timestamp("us", tz="UTC"), nullable=False),
        pa.field("model", pa.string()), pa.field("version", pa.string(), nullable=False), pa.field("label", pa.string(), nullable=False),
        pa.field("confidence", pa.float64()), pa.field("probabilities", pa.map_(pa.string(), pa.float64())),
        pa.field("content", pa.string()), pa.field("truth", pa.string()),
    ])  # fmt: skip


def digest(content: bytes | str) -> str:
    """What ``content`` holds of a request: ``sha256:<hex>`` of its bytes, of a text's UTF-8."""
    data = content.encode("utf-8", "surrogatepass") if isinstance(content, str) else bytes(content)
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


class PredictionLog:
    """Appends answers to the log at ``place``. Safe to use from any thread; never raises but in ``write``."""

    def __init__(self, place: str, model: str, version: str, *, rows: int = ROWS, seconds: float = SECONDS) -> None:
        self._place, self._model, self._version = place, model, version
        self._rows, self._seconds = rows, seconds
        self._held: deque[dict[str, Any]] = deque()
        self._lock, self._writing = threading.Lock(), threading.Lock()
        self._due = threading.Event()
        self._thread: threading.Thread | None = None
        self._lost = 0
        self._closed = False

    def rows_of(self, answer: pd.DataFrame, contents: Iterable[str | None]) -> list[dict[str, Any]]:
        """An answer as rows of the log; none where it is not one class a sample."""
        if "label" not in answer:
            return []
        at = datetime.now(UTC)
        return [
            {
                "id": uuid.uuid4().hex, "at": at, "model": self._model, "version": self._version, "label": label,
                "confidence": confidence, "probabilities": list(probabilities.items()), "content": content, "truth": None,
            }
            for label, confidence, probabilities, content in zip(
                answer["label"], answer["confidence"], answer["probabilities"], contents, strict=True
            )
        ]  # fmt: skip

    def add(self, answer: pd.DataFrame, contents: Iterable[str | None]) -> None:
        """Holds an answer, columns ``label``, ``confidence`` and ``probabilities``, until it is written."""
        try:
            rows = self.rows_of(answer, contents)
            with self._lock:
                self._held.extend(rows)
                self._limit()
                due = len(self._held) >= self._rows
                self._start()
            if due:
                self._due.set()
        except Exception:  # whoever asked gets the answer, whatever becomes of the log
            _LOG.exception("an answer could not be logged")

    def flush(self) -> None:
        """Writes what is held; tells, and keeps it, where that fails."""
        with self._writing:
            with self._lock:
                rows, self._held = list(self._held), deque()
            if not rows:
                return
            try:
                self.write(rows)
            except Exception as error:
                _LOG.warning(
                    "%d predictions are held: the log at %s cannot be written: %s", len(rows), self._place, error
                )
                with self._lock:
                    self._held.extendleft(reversed(rows))
                    self._limit()

    def write(self, rows: Sequence[dict[str, Any]]) -> None:
        """A new file ``<day>/<version>-<time>-<random>.parquet`` with these rows. Raises what the storage raises."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        at: datetime = rows[0]["at"]
        version = re.sub(r"[^A-Za-z0-9.-]+", "-", self._version) or "unknown"
        name = f"{version}-{at:%H%M%S}-{uuid.uuid4().hex[:12]}.parquet"
        table = pa.Table.from_pylist(list(rows), schema=schema())
        if self._place.startswith("s3://"):
            key = f"{self._place.removeprefix('s3://').rstrip('/')}/{at:%Y-%m-%d}/{name}"
            pq.write_table(table, key, filesystem=_s3(), compression="zstd")
            return
        folder = Path(self._place) / f"{at:%Y-%m-%d}"
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / f".{name}.partial"
        try:
            pq.write_table(table, temporary, compression="zstd")
            temporary.replace(folder / name)
        finally:
            temporary.unlink(missing_ok=True)

    def close(self) -> None:
        """Writes what is held, and ends the thread."""
        self._closed = True
        self._due.set()
        self.flush()

    def _limit(self) -> None:
        """Drops the oldest rows of too many."""
        while len(self._held) > MOST_HELD:
            self._held.popleft()
            self._lost += 1
            if self._lost % ROWS == 1:
                _LOG.error("%d predictions are lost: the log at %s cannot be written", self._lost, self._place)

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="prediction-log", daemon=True)
            self._thread.start()
            atexit.register(self.close)

    def _run(self) -> None:
        while not self._closed:
            self._due.wait(self._seconds)
            self._due.clear()
            self.flush()


def served_log(artifact: Path) -> PredictionLog | None:
    """The log of a served model, where the environment asks for one; ``artifact`` lies in the folder that MLflow loaded."""
    place = os.environ.get(VARIABLE, "").strip()
    if not place:
        return None
    model, version = _identity(artifact)
    log = PredictionLog(place, model, version)
    _flush_when_told_to_stop(log)
    return log


def _flush_when_told_to_stop(log: PredictionLog) -> None:
    """Writes on SIGTERM what is held, then goes on as before. It is what uvicorn ends by in the end, and no exit handler runs then."""
    if threading.current_thread() is not threading.main_thread():
        return
    before = signal.getsignal(signal.SIGTERM)
    if before is None or before == signal.SIG_IGN:
        return

    def handle(number: int, frame: FrameType | None) -> None:
        # In a thread, because this one may hold the lock just now.
        writer = threading.Thread(target=log.flush, daemon=True)
        writer.start()
        writer.join(_LAST_SECONDS)
        if callable(before):
            before(number, frame)
        else:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    signal.signal(signal.SIGTERM, handle)


def _identity(artifact: Path) -> tuple[str, str]:
    """Name and version in the registry, which MLflow leaves beside a model that it loads from there; else its id and nothing."""
    for folder in list(artifact.parents)[:3]:
        found: dict[str, str] = {}
        for name in ("MLmodel", "registered_model_meta"):
            try:
                text = (folder / name).read_text(encoding="utf-8")
            except OSError:
                continue
            found |= dict(re.findall(r"^(model_id|model_name|model_version): *['\"]?([^'\"\n]*?)['\"]? *$", text, re.M))
        if found:
            return found.get("model_name", ""), found.get("model_version", found.get("model_id", ""))
    return "", ""


def _s3() -> Any:
    """pyarrow's own client: it is in every served model's environment, and boto3 is not."""
    from pyarrow.fs import S3FileSystem

    known = {
        "endpoint_override": os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"),
        "region": os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION"),
    }
    return S3FileSystem(**{name: value for name, value in known.items() if value})
