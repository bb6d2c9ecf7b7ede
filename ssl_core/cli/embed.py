"""``ssl-core embed PROJECT FILE``: texts or images through a registered model, into a Parquet file."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import click

from ssl_core.cli.common import load_settings, stderr_console
from ssl_core.config.load import find_project, load_project
from ssl_core.config.project import NAME_PATTERN, ProjectConfig
from ssl_core.config.settings import Settings
from ssl_core.errors import UserError

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

    from ssl_core.cli.embed_rows import Rows
    from ssl_core.registry.served import Served
    from ssl_core.serving.prediction_log import PredictionLog
    from ssl_core.step import Progress

LOGGED = 10_000
"""Answers in one file of a prediction log."""
BATCH = 256
"""Samples sent at once: enough to sort by length, few enough to show progress."""


@click.command()
@click.argument("project")
@click.argument("file")
@click.option(
    "--out", type=click.Path(path_type=Path), default=None,
    help="The Parquet file to write, replaced if it exists. Default: FILE's name with -embeddings.parquet, in this folder.",
)  # fmt: skip
@click.option(
    "--version", metavar="N", help="A registered version. Default: the champion; of encoders else the newest."
)
@click.option(
    "--column", metavar="NAME", help="The column or JSON key with the text. Default: the project's data.text."
)
@click.option(
    "--predict", is_flag=True, help="Ask the fine-tuned model for labels instead of the encoder for features."
)
@click.option(
    "--log", metavar="PLACE",
    help="With --predict: append the answers to the prediction log in this folder or s3:// prefix, for the monitor.",
)  # fmt: skip
def embed(
    project: str, file: str, out: Path | None, version: str | None, column: str | None, predict: bool, log: str | None
) -> None:
    """Send the texts or images in FILE through the registered model of PROJECT (a name or a file).

    FILE: .txt with one text a line, .jsonl, .csv, .tsv or .parquet; images: an image or a folder. The same in S3.
    Writes the columns id and embedding, or with --predict id and what the model answers.
    """
    settings = load_settings()
    name, config = _project(project, settings)
    target = out or Path(f"{PurePosixPath(file.rstrip('/')).stem}-{'predictions' if predict else 'embeddings'}.parquet")
    _check_target(target, file)
    if log is not None and not predict:
        raise UserError("an encoder answers no labels to log", place="--log", next_step="add --predict")

    from ssl_core.cli.embed_rows import open_rows
    from ssl_core.cli.progress import make_progress
    from ssl_core.registry.served import served
    from ssl_core.registry.server import ensure_server

    progress = make_progress(stderr_console())
    ensure_server(settings, progress.note)
    with served(settings, name, "classifier" if predict else "encoder", version) as by:
        rows = open_rows(by.modality, file, config, column, settings.cache, progress)
        schema = _write(target, by, rows, file, progress, log)
    shown = ", ".join(field for field in schema.names if field != "id")
    click.echo(f"wrote {target}: {len(rows):,} row{'' if len(rows) == 1 else 's'} of id, {shown}, by {by}")


def _project(asked: str, settings: Settings) -> tuple[str, ProjectConfig | None]:
    """Name and project file. A name is enough: the project file may be elsewhere, the model is in the registry."""
    try:
        path = find_project(asked, settings.projects_dir)
    except UserError:
        if not re.fullmatch(NAME_PATTERN, asked):
            raise
        return asked, None
    config = load_project(path)
    return config.name, config


def _check_target(target: Path, file: str) -> None:
    if target.is_dir():
        raise UserError("is a folder", place=f"--out {target}", next_step="name a file, such as embeddings.parquet")
    if target.exists() and "://" not in file and Path(file).exists() and target.samefile(file):
        raise UserError("would replace what is read", place=f"--out {target}", next_step="name another file")
    if not target.absolute().parent.is_dir():
        raise UserError("no such folder", place=f"--out {target}", next_step=f"mkdir -p {target.parent}")


def _write(target: Path, by: Served, rows: Rows, asked: str, progress: Progress, log: str | None) -> pa.Schema:
    """Sends the rows batch by batch. The file takes its name when it is whole; returns its schema."""
    import pyarrow.parquet as pq

    from ssl_core.serving.prediction_log import PredictionLog
    from ssl_core.store import storage_errors

    answers_log = PredictionLog(log, by.name, by.version) if log else None
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    writer: pq.ParquetWriter | None = None
    logged: list[dict[str, Any]] = []
    try:
        with storage_errors(str(target)):
            with progress.bar("embed", len(rows), "rows") as bar:
                for ids, contents, answer in _answers(by, rows, asked):
                    if answers_log is not None:
                        logged += answers_log.rows_of(answer, contents)
                        _append(answers_log, logged, str(log), LOGGED)
                    table = to_table(ids, answer)
                    if writer is None:
                        table = table.replace_schema_metadata({"ssl.model": f"models:/{by.name}/{by.version}"})
                        writer = pq.ParquetWriter(temporary, table.schema, compression="zstd")
                    writer.write_table(table.cast(writer.schema))
                    bar.advance(len(ids))
            assert writer is not None, "whoever opened the rows found some"
            writer.close()
            temporary.replace(target)
        if answers_log is not None:
            _append(answers_log, logged, str(log), 1)
        return writer.schema
    finally:
        if writer is not None and writer.is_open:
            writer.close()
        temporary.unlink(missing_ok=True)


def _append(log: PredictionLog, rows: list[dict[str, Any]], place: str, fewest: int) -> None:
    """Moves rows into the log, where there are at least ``fewest``."""
    from ssl_core.store import storage_errors

    if len(rows) >= fewest:
        with storage_errors(place):
            log.write(rows)
        rows.clear()


def _answers(by: Served, rows: Rows, asked: str) -> Iterator[tuple[list[str], list[str], pd.DataFrame]]:
    """Ids, digests of what was sent, and answers."""
    import pandas as pd
    from mlflow.exceptions import MlflowException

    from ssl_core.serving.prediction_log import digest

    column = by.model.metadata.get_input_schema().input_names()[0]
    for ids, values in rows.batches(BATCH):
        try:
            answer = by.model.predict(pd.DataFrame({column: values}))
        except MlflowException as error:
            # The served model names a row of its request, which a person never saw.
            found = re.match(r"row (\d+): (.*)", str(error.message), re.DOTALL)
            if found is None:
                raise
            raise UserError(
                f"{ids[int(found[1])]}: {found[2]}", place=asked, next_step="mend or remove it, then run the same command again"
            ) from error  # fmt: skip
        yield ids, [digest(value) for value in values], answer


def to_table(ids: list[str], answer: pd.DataFrame) -> pa.Table:
    """Ids and answers: embeddings as lists of float32, probabilities as one field a class, what people read as it is."""
    import pyarrow as pa

    kinds: dict[str, Any] = {
        "embedding": pa.list_(pa.float32()), "label": pa.string(), "labels": pa.list_(pa.string()), "confidence": pa.float64(),
        "value": pa.float64(),
    }  # fmt: skip
    if "probabilities" in answer:
        kinds["probabilities"] = pa.struct([(name, pa.float64()) for name in answer["probabilities"].iloc[0]])
    arrays = [pa.array(ids, pa.string())]
    names = [str(name) for name in answer.columns]
    arrays += [pa.array(answer[name].tolist(), kinds.get(name)) for name in names]
    return pa.table(arrays, names=["id", *names])
