"""A small image whose ``ssl-core step`` does whatever the spec says: what the Docker runner does is tried without training."""

from __future__ import annotations

import io
import tarfile

import docker

from ssl_core import __version__

NAME = "ssl-core-test-job"
_STEP = 'import json, os, signal, sys, time\nexec(json.loads(os.environ["SSL_STEP_SPEC"])["do"])\n'
_DOCKERFILE = """
FROM {base}
COPY ssl_core /opt/job/ssl_core
ENV PYTHONPATH=/opt/job
RUN mkdir -m 1777 /scratch /cache
LABEL ssl-core.version={version}
USER 10001:10001
"""


def job_image(base: str, version: str = __version__, *, package: bool = True) -> str:
    """Builds it over ``base``, which holds Python, and returns its name. ``package=False``: there is no ssl-core in it."""
    tag = f"{NAME}:{version or 'unlabelled'}{'' if package else '-empty'}"
    files = {
        "Dockerfile": _DOCKERFILE.format(base=base, version=version),
        "ssl_core/__init__.py": "",
        "ssl_core/cli/__init__.py": "",
        "ssl_core/cli/__main__.py": _STEP,
    }
    if not version:
        files["Dockerfile"] = files["Dockerfile"].replace("LABEL ssl-core.version=\n", "")
    if not package:
        files["Dockerfile"] += 'USER root\nRUN rm "$(command -v python)"\nUSER 10001:10001\n'
    context = io.BytesIO()
    with tarfile.open(fileobj=context, mode="w") as archive:
        for name, text in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(text.encode()), 0o644
            archive.addfile(entry, io.BytesIO(text.encode()))
    context.seek(0)
    said = []
    for event in docker.APIClient().build(fileobj=context, custom_context=True, tag=tag, rm=True, decode=True):
        said.append(str(event))
        assert "error" not in event, "\n".join(said[-5:])
    return tag
