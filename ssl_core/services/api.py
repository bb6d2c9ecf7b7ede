"""A small client for Airflow's REST API: sign in, ask, and turn its errors into ours."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote, urlsplit

import requests

from ssl_core.errors import TryAgain, UserError

_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_TOKEN_SECONDS = 30.0


class AirflowApi:
    """One user's way to the API at ``url`` (without ``/api/v2``). Signs in on the first request that needs it.

    All methods raise ``TryAgain`` where nothing answers or the server fails, and ``UserError`` with the API's own message where it
    refuses.
    """

    def __init__(self, url: str, user: str, password: str, *, timeout: float = 30.0) -> None:
        self.url = url.rstrip("/")
        self._user, self._password, self._timeout = user, password, timeout
        self._session = requests.Session()
        if urlsplit(url).hostname in _LOOPBACK:
            # Neither a proxy nor a ~/.netrc has a say about this machine's own server.
            self._session.trust_env = False

    def get(self, path: str, **query: Any) -> Any:
        """The JSON answer of ``GET /api/v2/<path>``; a ``None`` in the query is left out."""
        return self._json("GET", path, query=query)

    def post(self, path: str, body: Any) -> Any:
        """The JSON answer of ``POST /api/v2/<path>``."""
        return self._json("POST", path, body=body)

    def patch(self, path: str, body: Any) -> Any:
        """The JSON answer of ``PATCH /api/v2/<path>``."""
        return self._json("PATCH", path, body=body)

    def health(self) -> dict[str, dict[str, str | None]]:
        """Status and last heartbeat of each component; needs no sign-in."""
        answer: dict[str, dict[str, str | None]] = self._parsed(self._send("GET", "monitor/health"), "monitor/health")
        return answer

    def version(self) -> str:
        """Airflow's version; needs no sign-in."""
        return str(self._parsed(self._send("GET", "version"), "version")["version"])

    def ensure_pool(self, name: str, slots: int, description: str) -> None:
        """Makes the pool unless there is one of that name: what somebody set is left alone."""
        if self._has_pool(name):
            return
        try:
            self.post("pools", {"name": name, "slots": slots, "description": description, "include_deferred": False})
        except UserError:
            if not self._has_pool(name):  # else somebody made it between the two requests
                raise

    def _has_pool(self, name: str) -> bool:
        known = self.get("pools", pool_name_pattern=name, limit=100)["pools"]
        return any(pool["name"] == name for pool in known)

    def task_log(
        self, dag_id: str, run_id: str, task_id: str, try_number: int = 1, *, map_index: int = -1
    ) -> list[str]:
        """What a task has written so far, one message a line; works while it runs, and is empty before it does."""
        parts = ["dags", dag_id, "dagRuns", run_id, "taskInstances", task_id, "logs", str(try_number)]
        path = "/".join(quote(part, safe="") for part in parts)
        # JSON, not NDJSON: that one waits for a task which has not started yet.
        answer = self._authorized("GET", path, query={"map_index": map_index, "full_content": "true"}, missing_ok=True)
        return [] if answer.status_code == 404 else _messages(self._parsed(answer, path)["content"])

    def _json(self, method: str, path: str, *, query: dict[str, Any] | None = None, body: Any = None) -> Any:
        return self._parsed(self._authorized(method, path, query=query, body=body), path)

    def _authorized(self, method: str, path: str, *, missing_ok: bool = False, **request: Any) -> requests.Response:
        if "Authorization" not in self._session.headers:
            self._sign_in()
        answer = self._send(method, path, **request)
        if answer.status_code == 401:  # the token has run out, or the server got a new secret
            self._sign_in()
            answer = self._send(method, path, **request)
        return answer if missing_ok and answer.status_code == 404 else self._checked(answer, path)

    def _sign_in(self) -> None:
        self._session.headers.pop("Authorization", None)
        body = {"username": self._user, "password": self._password}
        answer = self._request("POST", f"{self.url}/auth/token", json=body, timeout=_TOKEN_SECONDS)
        if answer.status_code in (401, 403):
            raise UserError(
                f"Airflow does not let user {self._user!r} in",
                place=f"{self.url}/auth/token",
                next_step="check the password; it is read when Airflow starts: ssl-core down, ssl-core up",
            )
        token = self._parsed(answer, "auth/token").get("access_token", "")
        self._session.headers["Authorization"] = f"Bearer {token}"

    def _send(
        self, method: str, path: str, *, query: dict[str, Any] | None = None, body: Any = None
    ) -> requests.Response:
        return self._request(
            method,
            f"{self.url}/api/v2/{path.lstrip('/')}",
            params={k: v for k, v in (query or {}).items() if v is not None},
            json=body,
            headers={"Accept": "application/json"},
            timeout=self._timeout,
        )

    def _request(self, method: str, url: str, **request: Any) -> requests.Response:
        try:
            return self._session.request(method, url, **request)
        except requests.RequestException as error:
            raise TryAgain(
                f"Airflow does not answer: {type(error).__name__}",
                place=self.url,
                next_step="ssl-core status says what runs; ssl-core up starts it",
            ) from error

    def _parsed(self, answer: requests.Response, path: str) -> Any:
        answer = self._checked(answer, path)
        if not answer.content:
            return None
        try:
            return answer.json()
        except ValueError as error:
            raise UserError(
                "something else than Airflow answers here", place=answer.url, next_step="check SSL_AIRFLOW_PORT"
            ) from error

    def _checked(self, answer: requests.Response, path: str) -> requests.Response:
        if answer.status_code >= 500 or answer.status_code == 429:
            raise TryAgain(
                f"Airflow answers {answer.status_code}", place=answer.url, next_step="ssl-core logs api-server"
            )
        if answer.status_code >= 400:
            raise UserError(f"Airflow refuses: {_detail(answer)}", place=f"{path} ({answer.status_code})")
        return answer


def _detail(answer: requests.Response) -> str:
    """The API's own words: a string, or a list of what is wrong with which field."""
    try:
        detail = answer.json()["detail"]
    except (ValueError, KeyError, TypeError):
        return answer.text.strip()[:500] or answer.reason
    if isinstance(detail, list):
        return "; ".join(
            f"{'.'.join(str(part) for part in item.get('loc', []))}: {item.get('msg', item)}" for item in detail
        )
    if isinstance(detail, dict):
        return str(detail.get("message") or detail.get("reason") or detail)
    return str(detail)


def _messages(events: list[Any]) -> list[str]:
    """The task's lines: without the group in which Airflow says from where it read them."""
    lines, skipping = [], False
    for event in events:
        text = str(event.get("event", "")) if isinstance(event, dict) else str(event)
        if text.startswith("::group::Log message source"):
            skipping = True
        elif text == "::endgroup::" and skipping:
            skipping = False
        elif not skipping:
            lines.append(text)
    return lines
