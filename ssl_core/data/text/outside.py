"""What pretraining on texts reads beside the dataset: files whose content is part of what an encoder follows from."""

from __future__ import annotations

import hashlib
import json

from ssl_core.config.project import ProjectConfig, TextProject
from ssl_core.config.settings import expand
from ssl_core.data.text import pretrained


def fingerprint(project: ProjectConfig) -> str:
    """Changes with the entities to mask and the checkpoint to start from, where they are files of this machine."""
    assert isinstance(project, TextProject)
    entities, listing = project.objective.masking.entities, [pretrained.fingerprint(project.encoder.init_from)]
    if entities is not None:
        path = expand(entities)
        # A file that is missing is the step's to report.
        listing.append(hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "")
    return hashlib.sha256(json.dumps(listing).encode()).hexdigest() if any(listing) else ""
