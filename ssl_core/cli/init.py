"""``ssl-core init``: looks at the data and writes a first project file that runs."""

from __future__ import annotations

import os
import re
import uuid
from pathlib import Path
from typing import Protocol

import click

from ssl_core.cli.common import load_settings
from ssl_core.cli.init_lines import absolute
from ssl_core.config.load import load_project
from ssl_core.config.project import NAME_PATTERN, PROJECTS
from ssl_core.config.settings import expand
from ssl_core.errors import UserError
from ssl_core.validation.report import printable

_NAME_LENGTH = 40


@click.command()
@click.argument("name")
@click.option(
    "--data",
    required=True,
    metavar="PATH",
    help="Folder with images; folder or file with texts (.txt, .jsonl, .csv, .tsv, .parquet); s3://bucket/prefix; "
    "or sample://digits, sample://animals, sample://reviews.",
)
@click.option(
    "--modality", type=click.Choice(list(PROJECTS)), default=None, help="What a sample is. Default: by what lies there."
)
@click.option(
    "--projects-dir",
    type=click.Path(path_type=Path),
    default=None,
    help="Where to write it. Default: SSL_PROJECTS_DIR, or projects.",
)
@click.option("--force", is_flag=True, help="Replace a project file that exists.")
def init(name: str, data: str, modality: str | None, projects_dir: Path | None, force: bool) -> None:
    """Look at your data and write a first project file, NAME.yaml, that runs."""
    folder = projects_dir or load_settings().projects_dir
    seen = look(name, data, modality)
    path = write(name, data, folder, seen, force=force)
    for line in seen.sentences():
        click.echo(line)
    click.echo(f"wrote {path}\nnext: read it, then ssl-core run {path if projects_dir else name}")


class Look(Protocol):
    """What was found in the data of one modality."""

    def sentences(self) -> list[str]:
        """The findings in words."""
        ...

    def compose(self, name: str, source: str) -> str:
        """The text of the project file: what a first run needs, and a reason beside each value."""
        ...


def write_project(name: str, data: str, folder: Path, modality: str | None = None, *, force: bool = False) -> Path:
    """Writes ``<folder>/<name>.yaml`` for the samples at ``data`` and returns its path.

    Raises:
        UserError: a bad name, a source without usable samples, wrong labels, or a file that exists (without ``force``).
    """
    return write(name, data, folder, look(name, data, modality), force=force)


def look(name: str, data: str, modality: str | None = None) -> Look:
    """Looks at the samples at ``data``. Raises ``UserError`` as ``write_project`` does."""
    _check_name(name)
    if (modality or _modality(data)) == "text":
        from ssl_core.cli import init_text

        return init_text.look(name, data)
    from ssl_core.cli import init_image

    return init_image.look(name, data)


def _modality(data: str) -> str:
    """Texts where there are files of texts and no images, else images. Raises ``UserError`` where no file may be either."""
    if data.startswith("sample://"):
        from ssl_core.data.samples import SAMPLES

        sample = SAMPLES.get(data.removeprefix("sample://"))
        return sample.modality if sample else "image"
    from PIL import Image

    from ssl_core.data.files import Rules, open_files
    from ssl_core.data.layout import LABELS_FILE, is_sidecar
    from ssl_core.data.text.files import READERS, ending

    try:
        files = open_files(
            data if "://" in data else str(absolute(data)),
            Rules("files", wanted=lambda name: True, most_bytes=None, one_file=True),
            load_settings().cache,
        )
    except UserError:
        return "image"  # whoever opens it next says what is wrong
    names = [name for name in files.names if files.is_one or Path(name).name != LABELS_FILE]
    endings = {ending(name) for name in names}
    if not endings & set(READERS) and all(map(is_sidecar, names)):
        raise UserError(
            f"no images and no texts in {data}",
            place="--data",
            next_step="name a folder that holds image files (.png, .jpg and whatever else Pillow reads) or text files "
            f"({', '.join(READERS)}), directly or in one folder per class",
        )
    return "text" if endings & set(READERS) and not endings & set(Image.registered_extensions()) else "image"


def write(name: str, data: str, folder: Path, seen: Look, *, force: bool = False) -> Path:
    """Writes the project file for what was seen; in one piece, and checked before it takes its name."""
    _check_name(name)
    path = folder / f"{name}.yaml"
    if not force and (taken := [p for p in (path, folder / f"{name}.yml") if p.exists()]):
        raise UserError(
            "this project file exists",
            place=str(taken[0]),
            next_step="choose another name, or add --force to replace it",
        )
    temporary = folder / f".{name}.{uuid.uuid4().hex}.yaml"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary.write_text(seen.compose(name, _source(data, folder)), encoding="utf-8")
        load_project(temporary)
        temporary.replace(path)
    except OSError as error:
        raise UserError(
            f"cannot be written: {error.strerror}",
            place=str(path),
            next_step="set --projects-dir to a folder you may write to",
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
    return path


def _source(data: str, folder: Path) -> str:
    """``data`` as the project file shall say it: relative where both lie in one place that may move, else absolute."""
    if "://" in data:
        return data
    path, base = absolute(data), expand(folder).resolve()
    return os.path.relpath(path, base) if path.is_relative_to(base.parent) else str(path)


def _check_name(name: str) -> None:
    if re.fullmatch(NAME_PATTERN, name) and len(name) <= _NAME_LENGTH:
        return
    better = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    better = (better if re.match(r"[a-z]", better) else f"p-{better}")[:_NAME_LENGTH].strip("-")
    raise UserError(
        f"'{printable(name, 60)}' is not a project name: lower-case letters, digits and dashes, a letter first, at most {_NAME_LENGTH}",
        place="NAME", next_step=f"for example: ssl-core init {better} --data PATH",
    )  # fmt: skip
