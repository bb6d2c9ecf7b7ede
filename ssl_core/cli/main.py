"""The command group: lazy commands, quiet libraries, and errors without tracebacks."""

from __future__ import annotations

import atexit
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import FrameType
from typing import Any

import click

from ssl_core import __version__
from ssl_core.errors import StepError, Stopped

# A command's module is imported when the command is called: `ssl-core --help` loads none of them.
_COMMANDS = {
    "demo": ("ssl_core.cli.demo:demo", "Start the platform and take a project through Airflow to a champion."),
    "demo-drift": (
        "ssl_core.cli.demo_drift:demo_drift",
        "Play drift on real digits, up to a champion that has learned it.",
    ),
    "run": ("ssl_core.cli.run:run", "Take a project through every step, in this process."),
    "report": ("ssl_core.cli.report:report", "Did pretraining help? The champion's evaluation."),
    "embed": ("ssl_core.cli.embed:embed", "Send texts or images through a registered model, into a Parquet file."),
    "init": ("ssl_core.cli.init:init", "Look at your data and write a first project file."),
    "lint": ("ssl_core.cli.project:lint", "Check project files."),
    "schema": ("ssl_core.cli.project:schema", "JSON Schema of the project file, for editors."),
    "step": ("ssl_core.cli.step:step", "Do one step: spec in SSL_STEP_SPEC, result to SSL_RESULT_PATH."),
    "doctor": ("ssl_core.cli.doctor:doctor", "Find what is wrong here, and the command that mends it."),
    "promote": ("ssl_core.cli.promote:promote", "Approve or decline what the gate left to a person."),
    "history": ("ssl_core.cli.history:history", "Who became champion, when and why: the ledger."),
    "rollback": ("ssl_core.cli.rollback:rollback", "Make an earlier champion the champion again."),
    "delete-version": ("ssl_core.cli.rollback:delete_version", "Remove a registered version that nothing needs."),
    "gc": ("ssl_core.cli.gc:gc", "Remove old checkpoints, cache and unpublished candidates."),
    "up": ("ssl_core.cli.platform:up", "Start Airflow and MLflow on this machine."),
    "down": ("ssl_core.cli.platform:down", "Stop them, with everything they started."),
    "status": ("ssl_core.cli.platform:status", "Say what runs, and whether it is healthy."),
    "logs": ("ssl_core.cli.platform:logs", "Show the logs of Airflow's processes and of MLflow."),
    "mlflow": ("ssl_core.cli.mlflow:mlflow", "Start, stop or look at the local MLflow server."),
}


class Commands(click.Group):
    """A group that imports a command when it is called, and turns known errors into exit codes."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in _COMMANDS:
            return None
        module, attribute = _COMMANDS[name][0].split(":")
        command: click.Command = getattr(import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in _COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with _sigterm_as_try_again():
                return super().invoke(ctx)
        except StepError as error:
            click.secho(f"{_KINDS.get(error.exit_code, 'failed')}: {error}", fg="red", err=True)
            sys.exit(error.exit_code)
        except KeyboardInterrupt:
            click.secho("stopped; nothing half-written is left, the same command goes on", fg="yellow", err=True)
            sys.exit(130)
        except BrokenPipeError:
            # The reader of a pipe (head, less) left: nothing more may be written at exit, and what was asked for may not be done.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(141)
        finally:
            # Ending takes a moment, in which Ctrl-C would kill a process that has done all its work.
            atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)


@contextmanager
def _sigterm_as_try_again() -> Iterator[None]:
    """A runner's SIGTERM means exit code 75 before the first step and between two as well; a step sets its own."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Stopped

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except Stopped as stopped:
        raise stopped.as_error() from None
    finally:
        signal.signal(signal.SIGTERM, previous)


_KINDS = {2: "error", 3: "check failed", 75: "try again"}


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="ssl-core")
def main() -> None:
    """Self-supervised learning from raw files to a registered champion."""
    quiet_libraries()


def quiet_libraries() -> None:
    """No telemetry and no chatter: what a person reads is ours."""
    for name in ("MLFLOW_DISABLE_TELEMETRY", "DO_NOT_TRACK", "DVC_NO_ANALYTICS"):
        os.environ.setdefault(name, "true")
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MPLBACKEND", "Agg")
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    for noisy in ("mlflow", "great_expectations", "alembic", "botocore", "urllib3"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
