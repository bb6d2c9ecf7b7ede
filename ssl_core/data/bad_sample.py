"""Why a sample cannot be used. A module of its own, because it travels inside served models."""

from __future__ import annotations


class BadSample(ValueError):
    """A sample that cannot be used; the message is the reason, for the quarantine list."""
