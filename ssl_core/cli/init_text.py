"""Texts as ``ssl-core init`` sees them, and their first project file."""

from __future__ import annotations

import json
import math
import statistics
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ssl_core.cli.common import load_settings, stderr_console
from ssl_core.cli.init_lines import absolute, class_lines, guard_lines, head, line, validation_lines, yaml_value
from ssl_core.cli.init_text_columns import Columns, guess_columns, guess_unit
from ssl_core.config.data import SplitConfig, TextDataConfig
from ssl_core.config.load import parse_project
from ssl_core.config.project import ProjectConfig
from ssl_core.data.table import LabelType
from ssl_core.errors import UserError
from ssl_core.validation.report import plural, printable

_LOOKED_AT = 300
_SPACELESS_BELOW = 0.06
"""Share of white space below which a script has no spaces between words: English has about .17, Finnish .12, Chinese .02."""
_SHOWN_WORDS = 5_000_000
"""About what a first run shows its encoder in all: a few minutes on two cores for the encoder of the defaults."""
_TOKENS_A_WORD = 1.4
_WIDE_WORDS = 5_000_000
"""Training words from which a wider encoder pays."""


@dataclass(frozen=True)
class TextLook:
    """What was found: all texts and labels, and the measures of some evenly spaced texts."""

    layout: str
    texts: int
    labels: dict[str, int]
    """Texts by class; with numbers, and where several classes go with a text, of each of them."""
    labelled: int
    columns: Columns
    unit: str
    """What one text of a .txt file is; empty where there is no such file, or the default is right."""
    words: list[int]
    """Of each text looked at; characters, where there are no spaces between words."""
    spaceless: bool
    unreadable: list[str] = field(default_factory=list)

    @property
    def looked_at(self) -> int:
        return len(self.words) + len(self.unreadable)

    @property
    def noun(self) -> str:
        """What texts are counted in."""
        return "characters" if self.spaceless else "words"

    @property
    def train_words(self) -> int:
        """In split train, about."""
        return max(1, round(statistics.mean(self.words) * self.texts * SplitConfig().train))

    @property
    def long(self) -> int:
        """Words that one text in twenty has, or more."""
        return sorted(self.words)[int(0.95 * (len(self.words) - 1))]

    def sentences(self) -> list[str]:
        """The findings in words."""
        classes = f"{len(self.labels):,} class{'' if len(self.labels) == 1 else 'es'}"
        how = {"class": f", in {classes}", "classes": f", each with any of {classes}", "number": " with a number"}
        lines = [
            f"{self.layout}: {plural(self.texts, 'text')}, {self.labelled:,} labelled"
            + (how[self.columns.label_type] if self.labelled else ""),
            f"looked at {plural(self.looked_at, 'text')}: {min(self.words):,} to {max(self.words):,} {self.noun}, "
            f"half of them have {round(statistics.median(self.words)):,} or more",
        ]
        if self.unreadable:
            lines.append(f"{len(self.unreadable):,} of these cannot be used, for example {self.unreadable[0]}")
        return lines

    def compose(self, name: str, source: str) -> str:
        """The text of the project file: what a first run needs, and a reason beside each value."""
        lines = [
            *head(name, self.sentences()),
            line("modality: text", "what a sample is"),
            *self._data(source),
            *validation_lines(
                self.texts,
                "{type: expect_column_values_to_be_between, kwargs: {column: words, min_value: 1, mostly: 0.99}, severity: warning}",
            ),
            *self._network(),
            *self._pretrain(),
            *self._task(),
        ]
        return "\n".join([*lines, ""])

    def _data(self, source: str) -> list[str]:
        columns = self.columns
        lines = ["", "data:", f"  source: {yaml_value(source)}"]
        if columns.text != "text":
            lines.append(line(f"  text: {yaml_value(columns.text)}", columns.why_text))
        if columns.label != "label":
            lines.append(line(f"  label: {yaml_value(columns.label)}", columns.why_label))
        elif not self.labelled and columns.others:
            shown = ", ".join(printable(other, 40) for other in columns.others)
            lines.append(
                f"  # label: ...              # the column with the labels, if one of these holds them: {shown}"
            )
        if columns.label_type != "class":
            lines.append(line(f"  label_type: {columns.label_type}", columns.why_type))
        if columns.label_type != "number":
            lines += class_lines(list(self.labels))
        if self.unit:
            lines.append(
                line(f"  unit: {self.unit}", "each line of a .txt file is a text; file: the whole file is one")
            )
        return lines + guard_lines(len(self.unreadable), self.looked_at, "text")

    def _network(self) -> list[str]:
        lines = []
        if self.spaceless:
            why = "hardly any spaces: learned without being told where words end"
            lines += ["", "tokenizer:", line("  kind: unigram", why)]
        # A character is about a token where there are no spaces.
        tokens = self.long * (0.8 if self.spaceless else _TOKENS_A_WORD) + 2
        length = min(512, max(32, 2 ** math.ceil(math.log2(tokens))))
        lines += ["", "encoder:"]
        if self.train_words >= _WIDE_WORDS:
            lines += [
                line(
                    "  layers: 4",
                    f"about {self.train_words:,} {self.noun} to learn from carry more than the default of 2",
                ),
                line("  hidden: 256", "the width; training time grows with its square. 128 for a first try"),
            ]
        why = "tokens seen at once; enough for 95% of the texts, the others are seen window by window"
        if tokens > length:
            why = "tokens seen at once; longer texts are seen window by window"
        return [*lines, line(f"  max_length: {length}", why), "", "objective:", "  name: mlm"]

    def _pretrain(self) -> list[str]:
        epochs = min(40, max(1, round(_SHOWN_WORDS / self.train_words)))
        shown = f"about {epochs * self.train_words:,} {self.noun} shown in all; fewer for a first try, more if the curves still fall"
        lines = ["", "pretrain:", line(f"  epochs: {epochs}", shown)]
        if epochs == 1:
            lines.append(line("  # budget: 30m", "time instead of epochs, for a first look at a large corpus"))
        return lines

    def _task(self) -> list[str]:
        if self.labelled:
            return [
                "",
                "task:",
                "  name: text-classification",
                line("  labels: all", "or a number: how far would fewer have gone?"),
            ]
        return [
            "",
            "# No labels were found: a run ends with the registered encoder and its health report. Labels may come later: a column,",
            "# a folder for each class of .txt files, or a labels.csv beside the texts.",
        ]  # fmt: skip


def look(name: str, data: str) -> TextLook:
    """Reads the source as ingest will, once, and measures a few hundred texts of it. Raises ``UserError`` where there is none."""
    from ssl_core.cli.progress import make_progress
    from ssl_core.data.bad_sample import BadSample
    from ssl_core.data.layout import Refused
    from ssl_core.data.text.kind import KIND

    source, cache = data if "://" in data else str(absolute(data)), load_settings().cache
    columns, unit, layout = _layout(data, source)
    project = _project(name, source, columns, unit)
    texts = KIND.open(project, cache)
    texts.sync(make_progress(stderr_console()), threading.Event())
    labels: Counter[str] = Counter()
    labelled = 0
    total = len(texts)
    chosen = {position * total // min(_LOOKED_AT, total) for position in range(min(_LOOKED_AT, total))}
    samples: list[str] = []
    unreadable: list[str] = []
    for position, item in enumerate(texts.items()):
        if item.label is not None:
            labelled += 1
            labels.update(_classes(item.label, columns.label_type))
        if position in chosen:
            try:
                raw = item.read()
                KIND.decode(raw, project)
                samples.append(str(KIND.stored(raw)))
            except (BadSample, Refused, OSError) as error:
                unreadable.append(f"{printable(item.name)}: {printable(error)}")
    if not samples:
        raise UserError(
            f"none of the {plural(len(unreadable), 'text')} looked at can be used, for example {unreadable[0] if unreadable else 'none'}",
            place=f"--data {data}", next_step="name the folder or file that holds the texts",
        )  # fmt: skip
    spaceless = _is_spaceless(samples)
    sizes = [len(text) if spaceless else len(text.split()) for text in samples]
    counts = dict(sorted(labels.items()))
    return TextLook(layout, total, counts, labelled, columns, unit, sizes, spaceless, unreadable)


def _layout(data: str, source: str) -> tuple[Columns, str, str]:
    """Columns, unit, and in a few words how the texts lie there."""
    if data.startswith("sample://"):
        return Columns(), "", f"bundled sample {data.removeprefix('sample://')}"
    from ssl_core.data.files import open_files
    from ssl_core.data.layout import LABELS_FILE
    from ssl_core.data.text.files import ending
    from ssl_core.data.text.source import RULES
    from ssl_core.step import NoProgress

    files = open_files(source, RULES, load_settings().cache)
    files.table("data.labels", None, LABELS_FILE)  # takes it out of the texts
    files.require_some()
    files.sync(NoProgress(), threading.Event())
    endings = sorted({ending(file) for file in files.names})
    what = f"{plural(len(files.names), 'file')} ({', '.join(endings)})"
    rows = [file for file in files.names if ending(file) != ".txt"]
    columns = guess_columns(files, rows[0]) if rows else Columns()
    unit = guess_unit(files, [file for file in files.names if ending(file) == ".txt"])
    where = "" if not data.startswith("s3://") else " in S3"
    return columns, unit, what + where


def _project(name: str, source: str, columns: Columns, unit: str) -> ProjectConfig:
    section = {"source": source, "text": columns.text, "label": columns.label, "label_type": columns.label_type}
    if unit:
        section["unit"] = unit
    project = parse_project({"name": name, "modality": "text", "data": section}, place="--data")
    assert isinstance(project.data, TextDataConfig)
    return project


def _classes(label: str, label_type: LabelType) -> Sequence[str]:
    """The classes that a stored label names."""
    split: dict[str, Callable[[str], Sequence[str]]] = {"classes": json.loads, "number": lambda label: []}
    return split[label_type](label) if label_type in split else [label]


def _is_spaceless(texts: Sequence[str]) -> bool:
    characters = sum(map(len, texts))
    return sum(character.isspace() for text in texts for character in text) < _SPACELESS_BELOW * characters
