"""A registered model asked in a process of its own, as one that serves it would load it.

What this process has imported, loaded or cached can then not answer in its place, and a model that takes its process down
takes down that one.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from ssl_core.config.settings import Settings
from ssl_core.errors import CheckFailed, StepError, TryAgain
from ssl_core.registry import versions
from ssl_core.registry.client import connect, mlflow_errors

_LONGEST_SECONDS = 900.0


def require_golden(settings: Settings, model_uri: str, golden: Path) -> float:
    """``versions.require_golden`` in a fresh process; raises what it raises."""
    with tempfile.TemporaryDirectory(prefix="ssl-core-afresh-") as folder:
        answer = Path(folder) / "answer.json"
        command = [sys.executable, "-m", "ssl_core.registry.afresh", model_uri, str(golden), str(answer)]
        try:
            done = subprocess.run(
                command,
                env={**os.environ, "MLFLOW_TRACKING_URI": settings.tracking_url},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                timeout=_LONGEST_SECONDS,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise _again(f"could not be asked in a process of its own: {error}", model_uri) from error
        if answer.is_file():
            return _told(json.loads(answer.read_bytes()))
        code, last_words = done.returncode, done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
    if code < 0 and -code != signal.SIGKILL:
        raise CheckFailed(f"the model ended its process with signal {-code} when it was asked", place=model_uri)
    what = "was killed, perhaps out of memory" if code < 0 else f"ended with exit code {code}: {last_words}"
    raise _again(f"the process that asks it {what}", model_uri)


def _again(cause: str, place: str) -> TryAgain:
    return TryAgain(cause, place=place, next_step="run the same command again; the model is then asked once more")


def _told(answer: dict[str, object]) -> float:
    kinds = {kind.exit_code: kind for kind in (CheckFailed, TryAgain)}
    if "error" not in answer:
        return float(str(answer["difference"]))
    kind = kinds.get(int(str(answer["error"])), StepError)
    raise kind(str(answer["cause"]), place=str(answer["place"]), next_step=str(answer["next_step"]))


def main(model_uri: str, golden: str, answer: str) -> None:
    """In the fresh process: writes ``{"difference"}``, or the known error, to the file ``answer``."""
    settings = Settings()
    try:
        with mlflow_errors(settings):
            connect(settings)
            found: dict[str, object] = {"difference": versions.require_golden(model_uri, Path(golden))}
    except StepError as error:
        found = {
            "error": error.exit_code,
            "cause": error.cause,
            "place": error.place,
            "next_step": error.next_step,
        }
    Path(answer).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
