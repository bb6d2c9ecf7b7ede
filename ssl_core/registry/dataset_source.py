"""How MLflow writes down where a dataset version lies."""

from __future__ import annotations

from typing import Any

from mlflow.data.dataset_source import DatasetSource


class DvcSource(DatasetSource):
    """A folder of the data repository at one revision, addressed by content in a DVC remote."""

    def __init__(self, path: str, revision: str, md5: str, remote: str) -> None:
        self.path, self.revision, self.md5, self.remote = path, revision, md5, remote

    @staticmethod
    def _get_source_type() -> str:
        return "dvc"

    def load(self, **_: Any) -> Any:
        """Not read through MLflow: ``ssl_core.data.reader`` fetches by content address."""
        raise NotImplementedError("read it with ssl_core.data.reader.fetch")

    @staticmethod
    def _can_resolve(raw_source: Any) -> bool:
        return False

    @classmethod
    def _resolve(cls, raw_source: Any) -> DvcSource:
        raise NotImplementedError

    def to_dict(self) -> dict[str, str]:
        return {"path": self.path, "revision": self.revision, "md5": self.md5, "remote": self.remote}

    @classmethod
    def from_dict(cls, source_dict: dict[str, Any]) -> DvcSource:
        return cls(**source_dict)
