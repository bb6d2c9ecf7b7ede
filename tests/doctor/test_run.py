"""Order, concurrency, time-outs, faults of a check itself, and secrets."""

from __future__ import annotations

import json
import threading
import time

import pytest

from ssl_core.doctor.finding import Check, Finding, Once, failed, ok, warning, worst
from ssl_core.doctor.run import Examination
from ssl_core.errors import TryAgain, UserError


def check(name: str, look, seconds: float = 5) -> Check:
    return Check(name, look, seconds, f"mend {name}")


def answers(settings, *checks: Check):
    return list(Examination(checks, settings).answers())


def test_answers_come_in_the_order_of_the_checks_however_fast_each_is(settings):
    def slow(_):
        time.sleep(0.3)
        return ok("slow")

    found = answers(settings, check("a", slow), check("b", lambda _: ok("fast")), check("c", slow))
    assert [(a.name, a.found) for a in found] == [("a", "slow"), ("b", "fast"), ("c", "slow")]


def test_an_answer_is_told_while_later_checks_still_run(settings):
    go_on = threading.Event()

    def waits(_):
        go_on.wait(10)
        return ok("waited")

    stream = Examination([check("a", lambda _: ok("first")), check("b", waits)], settings).answers()
    assert next(stream).found == "first"
    go_on.set()
    assert next(stream).found == "waited"


def test_checks_run_at_the_same_time(settings):
    together = threading.Barrier(8)  # breaks unless all are there at once

    def meets(_):
        together.wait(5)
        return ok("met")

    assert [a.status for a in answers(settings, *(check(str(n), meets) for n in range(8)))] == ["ok"] * 8


def test_a_check_that_hangs_is_told_with_its_mend_and_the_others_are_not_held_up(settings):
    forever = threading.Event()
    began = time.monotonic()
    examination = Examination([check("a", lambda _: forever.wait(), 0.2), check("b", lambda _: ok("fine"))], settings)
    a, b = examination.answers()
    assert (a.status, a.cause, a.mend, a.seconds) == ("failed", "no answer within 0.2 s", "mend a", 0.2)
    assert b.status == "ok"
    assert examination.late
    assert time.monotonic() - began < 2
    forever.set()


def test_with_every_check_hanging_it_ends_within_the_longest_time(settings):
    forever = threading.Event()
    checks = [check(str(n), lambda _: forever.wait(), 0.1 + n / 50) for n in range(20)]
    began = time.monotonic()
    found = answers(settings, *checks)
    assert time.monotonic() - began < 2
    assert all(a.status == "failed" and "no answer" in a.cause for a in found)
    forever.set()


@pytest.mark.parametrize(
    ("error", "cause", "mend"),
    [
        (UserError("is wrong", place="KEY", next_step="correct it"), "KEY: is wrong", "correct it"),
        (TryAgain("is away", next_step="start it"), "is away", "start it"),
        (ModuleNotFoundError("No module named 'x'", name="x"), "x cannot be imported", "make setup"),
        (KeyError("surprise"), "this check itself failed: KeyError", "report"),
        (SystemExit(3), "this check itself failed: SystemExit", "report"),
    ],
)
def test_whatever_a_check_raises_is_a_finding(error, cause, mend, settings):
    def raises(_):
        raise error

    (answer,) = answers(settings, check("a", raises))
    assert answer.status == "failed"
    assert cause in answer.cause
    assert mend in answer.mend


def test_no_secret_gets_out(settings, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s3cr3t/of+aws")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "pass-of-mlflow")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", "/etc/hostname")
    home = settings.root / "airflow"
    home.mkdir(parents=True)
    (home / "passwords.json").write_text(json.dumps({"admin": "pass-of-admin"}))
    said = "s3cr3t/of+aws pass-of-mlflow pass-of-admin https://user:word@host/x token in /etc/hostname"
    (answer,) = answers(settings, check("a", lambda _: Finding("failed", said, said, said)))
    for text in (answer.found, answer.cause, answer.mend):
        for secret in ("s3cr3t", "pass-of", "word@"):
            assert secret not in text
        assert "/etc/hostname" in text  # where a secret lies may be said


def test_several_findings_become_one():
    assert worst([], "all is well") == ok("all is well")
    both = worst([warning("little space", "free some"), failed("no right", "chmod it")], "seen")
    assert (both.status, both.cause, both.mend) == ("failed", "little space; no right", "free some; chmod it")
    assert worst([warning("a", "b")], "").status == "warning"


def test_what_several_checks_need_is_made_once():
    made = []

    def make():
        time.sleep(0.1)
        made.append(1)
        return len(made)

    once = Once(make)
    threads = [threading.Thread(target=once) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (once(), len(made)) == (1, 1)
