"""What looks like a secret is refused by key and line, and never repeated; ordinary words are left alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from ssl_core.cli.main import main
from ssl_core.config.load import load_project, parse_overrides, parse_project
from ssl_core.config.secrets import find_secrets
from ssl_core.errors import UserError

GOOD = "name: digits\ndata:\n  source: sample://digits\n"
KEY_ID = "AKIA" + "Q7" * 8  # put together here, so that scanners of this repository stay quiet
EXPECT = "validation:\n  expectations:\n    - type: expect_table_row_count_to_be_between\n"


def refusal(folder: Path, text: str) -> str:
    path = folder / "p.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        load_project(path)
    assert "take it out of the project file" in caught.value.next_step
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "where", "secret"),
    [
        (f"description: uses {KEY_ID} for now\n", ":4: description: an AWS access key id", KEY_ID),
        ("aws_secret_access_key: hush/hush\n", ":4: aws_secret_access_key: a secret", "hush/hush"),
        ("AWS_SESSION_TOKEN: hush-hush\n", ":4: AWS_SESSION_TOKEN: a secret", "hush-hush"),
        (EXPECT + "      meta: {password: 12345}\n", ":7: validation.expectations[0].meta.password: a secret", "12345"),
        (EXPECT + "      meta: {a: [x, 'postgres://me:hush@db/x']}\n", ":7: validation.expectations[0].meta.a[1]", "hush"),
        ("runner: {environment: {HF_TOKEN: hush-hush}}\n", "runner.environment.HF_TOKEN: a secret", "hush-hush"),
        ("description: |\n  -----BEGIN RSA PRIVATE KEY-----\n  hushhush\n", ":4: description: a private key", "hushhush"),
        (f"# the key is {KEY_ID}\n", ":4: an AWS access key id", KEY_ID),
        ("tags: ['ghp_" + "a1" * 18 + "']\n", ":4: tags[0]: an access token", "a1a1"),
        ("pets: {'https://hush@host': 1}\n", "an address with a user or password", "hush"),
    ],
)  # fmt: skip
def test_a_secret_is_refused_where_it_stands(tmp_path: Path, text: str, where: str, secret: str) -> None:
    shown = refusal(tmp_path, GOOD + text)
    assert where in shown
    assert secret not in shown


@pytest.mark.parametrize(
    "source",
    [
        "s3://key:hush@bucket/x",
        "s3://hush@bucket/x",
        "s3://bucket/x?X-Amz-Credential=hush",
        "s3://bucket/x?a=1&X-Amz-Signature=hush",
    ],
)
def test_an_s3_address_with_credentials_is_refused(tmp_path: Path, source: str) -> None:
    for text in (f"name: x\ndata: {{source: '{source}'}}\n", f"name: x\ndata: {{source: d, labels: '{source}'}}\n"):
        shown = refusal(tmp_path, text)
        assert ":2: data." in shown
        assert "hush" not in shown
        assert "AWS_PROFILE" in shown


def test_overrides_and_specs_are_looked_at_as_well(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(GOOD)
    with pytest.raises(UserError, match=r"--set: data\.source: an address with a user") as caught:
        load_project(path, parse_overrides(["data.source=s3://k:hush@b/p"]))
    assert "hush" not in str(caught.value)
    with pytest.raises(UserError, match="SSL_STEP_SPEC: description"):
        parse_project({"name": "x", "description": KEY_ID, "data": {"source": "d"}})


def test_lint_refuses_it(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(GOOD + f"owner: {KEY_ID}\n")
    done = CliRunner().invoke(main, ["lint", str(path)])
    assert done.exit_code == 2
    assert f"{path}:4: owner: an AWS access key id" in done.output
    assert KEY_ID not in done.output


@pytest.mark.parametrize(
    "harmless",
    [
        {"pad_token": "[PAD]", "cls_token": 3, "tokenizer": "bpe", "n_tokens": 5, "monkey": "x"},
        {"source": "s3://bucket/a@b/c:d?e=f#g", "owner": "me@example.com", "link": "https://wiki/@team?token=no"},
        {"data_repo": "ssh://git@host/data.git", "password": "", "secret": None, "secret_key": {"a": 1}, "api_token": False},
        {"sha": "a" * 40, "note": "AKIA is how a key id starts; BEGIN PUBLIC KEY"},
    ],
)  # fmt: skip
def test_ordinary_words_are_left_alone(harmless: dict[str, object]) -> None:
    assert list(find_secrets(harmless)) == []
