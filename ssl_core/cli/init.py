"""``ssl-core init``: looks at the data and writes a first project file that runs."""

from __future__ import annotations

import math
import os
import re
import statistics
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import yaml

from ssl_core.cli.common import load_settings
from ssl_core.config.data import ImageDataConfig, SplitConfig
from ssl_core.config.load import load_project, parse_project
from ssl_core.config.project import NAME_PATTERN
from ssl_core.config.settings import expand
from ssl_core.errors import UserError
from ssl_core.validation.report import plural, printable

_LOOKED_AT = 300
_NAME_LENGTH = 40
_LARGEST_SIDE = 96
_WIDE_SIDE = 48
_LISTED_CLASSES = 50
# About what the bundled projects show their encoders in all: epochs times training images.
_SHOWN_IMAGES = 100_000
# Above this share of unusable files the guard must not be set to let them pass: the source itself is wrong.
_MOST_UNREADABLE = 0.2


@click.command()
@click.argument("name")
@click.option(
    "--data",
    required=True,
    metavar="PATH",
    help="Folder with the images, s3://bucket/prefix, or sample://digits, sample://animals.",
)
@click.option(
    "--projects-dir",
    type=click.Path(path_type=Path),
    default=None,
    help="Where to write it. Default: SSL_PROJECTS_DIR, or projects.",
)
@click.option("--force", is_flag=True, help="Replace a project file that exists.")
def init(name: str, data: str, projects_dir: Path | None, force: bool) -> None:
    """Look at your data and write a first project file, NAME.yaml, that runs."""
    folder = projects_dir or load_settings().projects_dir
    seen = look(name, data)
    path = write(name, data, folder, seen, force=force)
    for line in seen.sentences():
        click.echo(line)
    click.echo(f"wrote {path}\nnext: read it, then ssl-core run {path if projects_dir else name}")


def write_project(name: str, data: str, folder: Path, *, force: bool = False) -> Path:
    """Writes ``<folder>/<name>.yaml`` for the images at ``data`` and returns its path.

    Raises:
        UserError: a bad name, a folder without usable images, wrong labels, or a file that exists (without ``force``).
    """
    return write(name, data, folder, look(name, data), force=force)


@dataclass(frozen=True)
class Look:
    """What was found: all files and labels, and the measures of some evenly spaced images."""

    layout: str
    files: int
    labels: dict[str, int]
    sides: list[tuple[int, int]]
    colour: bool
    unreadable: list[str] = field(default_factory=list)

    @property
    def labelled(self) -> int:
        return sum(self.labels.values())

    @property
    def side(self) -> int:
        """The longer median side in pixels: what ``image_size: auto`` is made of."""
        return round(max(statistics.median(sizes) for sizes in zip(*self.sides, strict=True)))

    @property
    def looked_at(self) -> int:
        return len(self.sides) + len(self.unreadable)

    def sentences(self) -> list[str]:
        """The findings in words."""
        smallest, largest = min(self.sides), max(self.sides)
        sizes = f"{smallest[0]} x {smallest[1]}" + (f" to {largest[0]} x {largest[1]}" if largest != smallest else "")
        classes = f"{len(self.labels):,} class{'' if len(self.labels) == 1 else 'es'}"
        lines = [
            f"{self.layout}: {plural(self.files, 'file')}, {self.labelled:,} labelled, in {classes}",
            f"looked at {plural(self.looked_at, 'image')}: {sizes} pixels, {'colour' if self.colour else 'grey'}",
        ]
        if self.unreadable:
            lines.append(
                f"{plural(len(self.unreadable), 'file')} of these cannot be used, for example {self.unreadable[0]}"
            )
        return lines


def look(name: str, data: str) -> Look:
    """Lists the source, and decodes a few hundred of its images. Raises ``UserError`` as ``write_project`` does."""
    from ssl_core.data.images import BadImage, decode
    from ssl_core.data.sources import Refused, open_source

    _check_name(name)
    source = data if "://" in data else str(_absolute(data))
    project = parse_project({"name": name, "data": {"source": source}}, place="--data")
    config, items = project.data, list(open_source(project).items())
    assert isinstance(config, ImageDataConfig)
    labels: dict[str, int] = {}
    for item in items:
        if item.label is not None:
            labels[item.label] = labels.get(item.label, 0) + 1
    sides, unreadable, colour = [], [], False
    for position in range(min(_LOOKED_AT, len(items))):
        item = items[position * len(items) // min(_LOOKED_AT, len(items))]
        try:
            image = decode(item.read(), max_pixels=config.max_pixels, min_side=config.min_side)
        except (BadImage, Refused, OSError) as error:
            unreadable.append(f"{printable(item.name)}: {printable(error)}")
            continue
        sides.append((image.width, image.height))
        colour |= image.channels == 3
    if not sides:
        raise UserError(
            f"none of the {plural(len(unreadable), 'file')} looked at is an image that can be used, for example {unreadable[0] if unreadable else 'none'}",
            place=f"--data {data}", next_step="name the folder that holds the images",
        )  # fmt: skip
    return Look(_layout(data, labels), len(items), dict(sorted(labels.items())), sides, colour, unreadable)


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
        temporary.write_text(compose(name, _source(data, folder), seen), encoding="utf-8")
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


def compose(name: str, source: str, seen: Look) -> str:
    """The text of the project file: what a first run needs, and a reason beside each value."""
    train = max(1, round(seen.files * SplitConfig().train))
    epochs = min(200, max(20, round(_SHOWN_IMAGES / train)))
    batch = 2 ** int(math.log2(min(256, max(8, train / 4))))
    side = min(_LARGEST_SIDE, max(8, seen.side))
    lines = [
        *[f"# {sentence}" for sentence in seen.sentences()],
        f"#   ssl-core run {name}",
        "# Only what differs from the defaults, or what you may want to change. Every key: docs/project-yaml.md",
        f"name: {name}",
        _line('description: ""', "one sentence for people"),
        "",
        "data:",
        f"  source: {_yaml(source)}",
    ]  # fmt: skip
    if 2 <= len(seen.labels) <= _LISTED_CLASSES:
        lines.append(
            _line(f"  classes: {_yaml(list(seen.labels))}", "as found; a label outside of this list is an error")
        )
    lines += [
        _line(f"  image_size: {side}", f"pixels a side that the encoder sees; {_why_side(seen.side, side)}"),
        _line(
            f"  channels: {3 if seen.colour else 1}",
            "colour" if seen.colour else "grey: no colour was found in the images looked at",
        ),
    ]
    if seen.unreadable:
        found = f"{len(seen.unreadable)} of {seen.looked_at} files looked at cannot be used"
        if len(seen.unreadable) > _MOST_UNREADABLE * seen.looked_at:
            lines.append(f"  # {found}: ingest will stop and list them all. Mend or remove them first.")
        else:
            share = math.ceil(200 * len(seen.unreadable) / seen.looked_at) / 100
            why = f"{found}; ingest lists them all. Mend them and remove this line"
            lines.append(_line(f"  max_quarantined: {share:g}", why))
    lines += [
        "",
        "validation:",
        _line(
            f"  min_rows: {max(1, seen.files // 2)}", "half of what is there now: a truncated delivery is not published"
        ),
        "  # expectations:         # Great Expectations' own form, over the columns of the manifest (docs/validation.md)",
        f"  #   - {{type: expect_column_values_to_be_between, kwargs: {{column: width, min_value: {min(w for w, _ in seen.sides)}, mostly: 0.99}}, severity: warning}}",
    ]
    if side >= _WIDE_SIDE:
        lines += [
            "",
            "encoder:",
            _line(
                "  widths: [32, 64, 128, 256]",
                "every stage after the first halves the image: larger images take one stage more",
            ),
        ]
    lines += [
        "",
        "objective:",
        "  name: simclr",
        "  augment:",
        _line("    flip: false", "true only where a mirrored image means the same: a cat yes, handwriting no"),
        "",
        "pretrain:",
        _line(
            f"  epochs: {epochs}",
            f"about {epochs * train:,} images shown in all; fewer for a first try, more if the curves still rise",
        ),
        _line(
            f"  batch_size: {batch}",
            f"for about {train:,} training images; the other images of a batch are what SimCLR repels",
        ),
    ]
    return "\n".join([*lines, *_evaluation(seen), ""])


def _evaluation(seen: Look) -> list[str]:
    if not seen.labels:
        return [
            "",
            "# No labels were found: a run ends with the registered encoder and its health report. Labels may come later: class",
            "# folders, or a labels.csv with the columns file,label beside the images.",
        ]
    return []


def _line(text: str, why: str) -> str:
    return f"{text:<24}   # {why}"


def _why_side(median: int, side: int) -> str:
    if side == median:
        return "the longer median side"
    if side > median:
        return f"the longer median side is {median}"
    return f"the longer median side is {median}; training time grows with the square, so start here or smaller"


def _layout(data: str, labels: dict[str, int]) -> str:
    from ssl_core.data.sources import LABELS_FILE

    if data.startswith("s3://"):
        return f"a folder in S3{'' if labels else ' without labels'}"
    if "://" in data:
        return f"bundled sample {data.split('://')[1]}"
    if (_absolute(data) / LABELS_FILE).is_file():
        return f"a folder with {LABELS_FILE}"
    return "class folders" if labels else "a folder without labels"


def _source(data: str, folder: Path) -> str:
    """``data`` as the project file shall say it: relative where both lie in one place that may move, else absolute."""
    if "://" in data:
        return data
    path, base = _absolute(data), expand(folder).resolve()
    return os.path.relpath(path, base) if path.is_relative_to(base.parent) else str(path)


def _absolute(data: str) -> Path:
    return expand(data).resolve()


def _check_name(name: str) -> None:
    if re.fullmatch(NAME_PATTERN, name) and len(name) <= _NAME_LENGTH:
        return
    better = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    better = (better if re.match(r"[a-z]", better) else f"p-{better}")[:_NAME_LENGTH].strip("-")
    raise UserError(
        f"'{printable(name, 60)}' is not a project name: lower-case letters, digits and dashes, a letter first, at most {_NAME_LENGTH}",
        place="NAME", next_step=f"for example: ssl-core init {better} --data PATH",
    )  # fmt: skip


def _yaml(value: Any) -> str:
    """One line of YAML for a value that comes from the data."""
    return (
        yaml.safe_dump(value, default_flow_style=True, width=math.inf, allow_unicode=True).removesuffix("...\n").strip()
    )
