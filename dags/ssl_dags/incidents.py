"""Open incidents: what people were told of and is not fine again. One a cause: the same again is counted, not told again.

They are Airflow Variables, one a task, small JSON: all workers and the DAG processor share them, and a person can look at them, or
remove one to be told again, under *Admin, Variables*. One run of a DAG at a time means one writer at a time.
"""

from __future__ import annotations

import logging
import re
from datetime import UTC, datetime
from typing import Any

from airflow.sdk import Variable

log = logging.getLogger("ssl_dags.incidents")

_MOST_CHARACTERS = 300
_CHANGING = re.compile(r"[0-9a-f]{8,}|[0-9]+(\.[0-9]+)?", re.IGNORECASE)  # digests, counts, measured values


def cause_of(event: str, reason: str) -> str:
    """What is the same each time it goes wrong in the same way: the reason's first line without its numbers."""
    return f"{event}: {_CHANGING.sub('#', reason.strip().partition(chr(10))[0])}"[:_MOST_CHARACTERS]


def opened(dag_id: str, task_id: str, cause: str, reason: str) -> bool:
    """Whether this is new, and people have to be told. Where that cannot be known, they are told."""
    key = _key(dag_id, task_id)
    try:
        incidents = _read(key)
        now = datetime.now(UTC).isoformat(timespec="seconds")
        known = incidents.get(cause)
        incidents[cause] = {
            "reason": (known or {}).get("reason", reason[:_MOST_CHARACTERS]),
            "since": (known or {}).get("since", now),
            "last": now,
            "count": (known or {}).get("count", 0) + 1,
        }
        Variable.set(key, incidents, description="Open incidents, kept by ssl_dags", serialize_json=True)
    except Exception as error:
        log.error("the incident cannot be kept: %s", type(error).__name__)
        return True
    return known is None


def closed(dag_id: str, task_id: str, event: str, *, but: str = "") -> list[dict[str, Any]]:
    """Closes a task's open incidents of ``event``, all but the cause ``but``, and returns them."""
    key = _key(dag_id, task_id)
    try:
        incidents = _read(key)
        ended = {cause for cause in incidents if cause.startswith(f"{event}: ") and cause != but}
        if not ended:
            return []
        rest = {cause: value for cause, value in incidents.items() if cause not in ended}
        if rest:
            Variable.set(key, rest, description="Open incidents, kept by ssl_dags", serialize_json=True)
        else:
            Variable.delete(key)
        return [incidents[cause] for cause in sorted(ended)]
    except Exception as error:
        log.error("the incident cannot be closed: %s", type(error).__name__)
        return []


def _key(dag_id: str, task_id: str) -> str:
    return f"ssl_incidents.{dag_id}{f'.{task_id}' if task_id else ''}"


def _read(key: str) -> dict[str, dict[str, Any]]:
    found = Variable.get(key, default=None, deserialize_json=True)
    if not isinstance(found, dict):  # none, or changed by hand to something else
        return {}
    return {cause: value for cause, value in found.items() if isinstance(value, dict)}
