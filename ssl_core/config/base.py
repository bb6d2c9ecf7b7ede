"""The base of every configuration section: immutable, and an unknown key is an error."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict
from pydantic.config import JsonDict

IN_FORM: JsonDict = {"form": "first"}
"""``json_schema_extra`` of the few fields that a trigger form shows at once; the others wait in their section."""


class Section(BaseModel):
    """One mapping of the project YAML. Field descriptions are the only copy: CLI, forms and docs read them here."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=False, allow_inf_nan=False)
