"""Images as ``ssl-core init`` sees them, and their first project file."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, field

from ssl_core.cli.init_lines import absolute, class_lines, guard_lines, head, line, validation_lines, yaml_value
from ssl_core.config.data import ImageDataConfig, SplitConfig
from ssl_core.config.load import parse_project
from ssl_core.errors import UserError
from ssl_core.validation.report import plural, printable

_LOOKED_AT = 300
_LARGEST_SIDE = 96
_WIDE_SIDE = 48
# About what the bundled projects show their encoders in all: epochs times training images.
_SHOWN_IMAGES = 100_000


@dataclass(frozen=True)
class ImageLook:
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

    def compose(self, name: str, source: str) -> str:
        """The text of the project file: what a first run needs, and a reason beside each value."""
        return _compose(self, name, source)


def look(name: str, data: str) -> ImageLook:
    """Lists the source, and decodes a few hundred of its images. Raises ``UserError`` where there is none."""
    from ssl_core.data.images import BadImage, decode
    from ssl_core.data.sources import Refused, open_source

    source = data if "://" in data else str(absolute(data))
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
    return ImageLook(_layout(data, labels), len(items), dict(sorted(labels.items())), sides, colour, unreadable)


def _compose(seen: ImageLook, name: str, source: str) -> str:
    train = max(1, round(seen.files * SplitConfig().train))
    epochs = min(200, max(20, round(_SHOWN_IMAGES / train)))
    batch = 2 ** int(math.log2(min(256, max(8, train / 4))))
    side = min(_LARGEST_SIDE, max(8, seen.side))
    lines = [
        *head(name, seen.sentences()),
        "",
        "data:",
        f"  source: {yaml_value(source)}",
    ]  # fmt: skip
    lines += class_lines(list(seen.labels))
    lines += [
        line(f"  image_size: {side}", f"pixels a side that the encoder sees; {_why_side(seen.side, side)}"),
        line(
            f"  channels: {3 if seen.colour else 1}",
            "colour" if seen.colour else "grey: no colour was found in the images looked at",
        ),
    ]
    lines += guard_lines(len(seen.unreadable), seen.looked_at, "file")
    narrowest = min(width for width, _ in seen.sides)
    example = f"{{type: expect_column_values_to_be_between, kwargs: {{column: width, min_value: {narrowest}, mostly: 0.99}}, severity: warning}}"
    lines += validation_lines(seen.files, example)
    if side >= _WIDE_SIDE:
        lines += [
            "",
            "encoder:",
            line(
                "  widths: [32, 64, 128, 256]",
                "every stage after the first halves the image: larger images take one stage more",
            ),
        ]
    lines += [
        "",
        "objective:",
        "  name: simclr",
        "  augment:",
        line("    flip: false", "true only where a mirrored image means the same: a cat yes, handwriting no"),
        "",
        "pretrain:",
        line(
            f"  epochs: {epochs}",
            f"about {epochs * train:,} images shown in all; fewer for a first try, more if the curves still rise",
        ),
        line(
            f"  batch_size: {batch}",
            f"for about {train:,} training images; the other images of a batch are what SimCLR repels",
        ),
    ]
    return "\n".join([*lines, *_evaluation(seen), ""])


def _evaluation(seen: ImageLook) -> list[str]:
    if not seen.labels:
        return [
            "",
            "# No labels were found: a run ends with the registered encoder and its health report. Labels may come later: class",
            "# folders, or a labels.csv with the columns file,label beside the images.",
        ]
    return []


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
    if (absolute(data) / LABELS_FILE).is_file():
        return f"a folder with {LABELS_FILE}"
    return "class folders" if labels else "a folder without labels"
