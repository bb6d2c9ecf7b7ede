"""Crons, time zones and limits: what is taken, and what a mistake is called."""

from __future__ import annotations

from pathlib import Path

import pytest

from ssl_core.config.load import load_project
from ssl_core.config.schedule import PRESETS, ScheduleConfig
from ssl_core.errors import UserError

HEAD = "name: tiny\ndata: {source: sample://digits}\n"
NO_CRON = "is no cron of five fields, such as '0 3 * * 1', nor one of @hourly, "


def problem(tmp_path: Path, text: str) -> str:
    path = tmp_path / "p.yaml"
    path.write_text(HEAD + text, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        load_project(path)
    return str(caught.value).replace(str(path), "p.yaml")


@pytest.mark.parametrize(
    "cron",
    ["0 3 * * 1", "*/15 8-18 * * mon-fri", "5 4 1,15 mar *", "0 0 29 2 *", "0 0 L * *", "59 23 31 12 7", *PRESETS],
)
def test_good_crons_are_taken_as_they_are(cron: str) -> None:
    schedule = ScheduleConfig(ingest=cron, pretrain=cron, finetune=cron)
    assert {schedule.ingest, schedule.pretrain, schedule.finetune} == {cron}


def test_nothing_is_scheduled_by_default() -> None:
    schedule = ScheduleConfig()
    assert (schedule.ingest, schedule.pretrain, schedule.finetune, schedule.timezone) == (None, None, None, "UTC")


@pytest.mark.parametrize(
    "cron",
    [
        "",
        "daily",
        "@Daily",
        "@reboot",
        "@every 5m",
        "0 3 * *",
        "0 3 * * 1 2026",
        "*/5 * * * * *",
        "60 * * * *",
        "0 24 * * *",
        "0 0 0 * *",
        "0 0 * 13 *",
        "*/0 * * * *",
        "a b c d e",
        "H 3 * * *",
        "R 3 * * *",
        "r(0-5) * * * *",
    ],
)
@pytest.mark.parametrize("key", ["ingest", "finetune"])
def test_bad_crons_name_file_line_and_key(tmp_path: Path, key: str, cron: str) -> None:
    said = problem(tmp_path, f"schedule:\n  timezone: UTC\n  {key}: '{cron}'\n")
    assert said.startswith(f"p.yaml:5: schedule.{key}: {NO_CRON}"), said
    assert f"got '{cron}'" in said
    assert "ssl-core lint" in said


def test_a_day_that_never_comes(tmp_path: Path) -> None:
    said = problem(tmp_path, "schedule:\n  ingest: 0 0 31 2 *\n")
    assert said.startswith("p.yaml:4: schedule.ingest: is a cron whose day never comes, got '0 0 31 2 *'")


def test_a_cron_that_is_no_text(tmp_path: Path) -> None:
    assert problem(tmp_path, "schedule:\n  ingest: 3\n").startswith(
        "p.yaml:4: schedule.ingest: should be a valid string"
    )


@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/Sao_Paulo", "UTC"])
def test_time_zones(zone: str) -> None:
    assert ScheduleConfig(timezone=zone).timezone == zone


@pytest.mark.parametrize("zone", ["Mars/Base", "Europe", "", "/etc/localtime", "../UTC", "x" * 300])
def test_a_bad_time_zone_is_named(tmp_path: Path, zone: str) -> None:
    said = problem(tmp_path, f"schedule:\n  ingest: '@daily'\n  timezone: '{zone}'\n")
    assert said.startswith("p.yaml:5: schedule.timezone: is no known time zone, such as UTC or Europe/Berlin, got "), (
        said
    )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("pretrain:\n  when: cron\n", "p.yaml:4: pretrain.when: cron needs a cron in `schedule.pretrain`\n"),
        (
            "pretrain: {when: cron}\nschedule:\n  ingest: '@daily'\n",
            "p.yaml:3: pretrain.when: cron needs a cron in `schedule.pretrain`\n",
        ),
        (
            "pretrain: {epochs: 3}\nschedule:\n  pretrain: '@weekly'\n",
            "p.yaml:5: schedule.pretrain: a cron needs `pretrain.when: cron`\n",
        ),
    ],
)
def test_cron_and_when_go_together(tmp_path: Path, text: str, says: str) -> None:
    assert problem(tmp_path, text).startswith(says)


def test_an_override_that_breaks_the_pair_is_named_by_what_was_overridden(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(HEAD)
    with pytest.raises(UserError) as caught:
        load_project(path, {"pretrain.when": "cron"})
    assert str(caught.value).startswith("--set: pretrain.when: cron needs a cron in `schedule.pretrain`\n")


def test_cron_and_when_together_are_taken(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(HEAD + "pretrain: {when: cron}\nschedule: {pretrain: '0 3 * * 1'}\n")
    project = load_project(path)
    assert (project.pretrain.when, project.schedule.pretrain) == ("cron", "0 3 * * 1")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{retries: -1}", "limits.retries: should be greater than or equal to 0, got -1"),
        ("{retries: 21}", "limits.retries: should be less than or equal to 20, got 21"),
        ("{retries: 1.5}", "limits.retries: should be a valid integer"),
        ("{retry_seconds: 0}", "limits.retry_seconds: should be greater than or equal to 1, got 0"),
        ("{step_hours: 0}", "limits.step_hours: should be greater than 0, got 0"),
        ("{step_hours: .nan}", "limits.step_hours: should be "),
        ("{run_hours: .inf}", "limits.run_hours: should be "),
        ("{retry: 3}", "limits.retry: unknown key, did you mean `retries`?"),
    ],
)
def test_bad_limits_are_named(tmp_path: Path, text: str, says: str) -> None:
    assert f"p.yaml:3: {says}" in problem(tmp_path, f"limits: {text}\n")
