from __future__ import annotations

import base64
import subprocess
from types import SimpleNamespace

import pytest

from ssl_dags.credentials import with_connections


def connection(login=None, password=None, **extra):
    return SimpleNamespace(login=login, password=password, extra_dejson=extra)


def test_connections_become_the_usual_variables():
    found = {
        "ssl_s3": connection(
            "AKIAX", "secret", endpoint_url="http://s3", region_name="eu-west-1", aws_session_token="t"
        ),
        "ssl_mlflow": connection("ada", "pw"),
    }
    public, secret = with_connections({"SSL_STORE": "s3://b"}, {}, found.get)
    assert public == {"SSL_STORE": "s3://b", "AWS_ENDPOINT_URL": "http://s3", "AWS_DEFAULT_REGION": "eu-west-1"}
    assert secret == {
        "AWS_ACCESS_KEY_ID": "AKIAX",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_SESSION_TOKEN": "t",
        "MLFLOW_TRACKING_USERNAME": "ada",
        "MLFLOW_TRACKING_PASSWORD": "pw",
    }


def test_what_a_connection_leaves_empty_stays_as_it_was():
    given = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_SESSION_TOKEN": "c"}
    public, secret = with_connections({}, given, {"ssl_s3": connection(endpoint_url="http://s3")}.get)
    assert (public, secret) == ({"AWS_ENDPOINT_URL": "http://s3"}, given)


def test_the_credentials_of_two_identities_are_never_mixed():
    environment = {
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b",
        "AWS_SESSION_TOKEN": "c",
        "MLFLOW_TRACKING_TOKEN": "t",
    }
    found = {"ssl_s3": connection("key", "secret"), "ssl_mlflow": connection("ada", "pw")}
    _, secret = with_connections({}, environment, found.get)
    assert secret == {
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "MLFLOW_TRACKING_USERNAME": "ada",
        "MLFLOW_TRACKING_PASSWORD": "pw",
    }


@pytest.mark.parametrize(
    ("host", "sent"), [("git.test", True), ("https://git.test/", True), (None, True), ("other.test", False)]
)
def test_git_sends_the_password_to_its_host_alone(host, sent, tmp_path, monkeypatch):
    """As git itself reads the variables."""
    found = {"ssl_git": SimpleNamespace(login="bot", password="token", host=host, extra_dejson={})}
    _, secret = with_connections({}, {}, found.get)
    for name, value in secret.items():
        monkeypatch.setenv(name, value)
    ask = ["git", "config", "--get-urlmatch", "http.extraHeader", "https://git.test/team/data.git"]
    said = subprocess.run(ask, capture_output=True, text=True, cwd=tmp_path, check=False).stdout.strip()
    assert said == (f"Authorization: Basic {base64.b64encode(b'bot:token').decode()}" if sent else "")


def test_without_connections_there_is_nothing():
    assert with_connections({"A": "1"}, {"B": "2"}, {}.get) == ({"A": "1"}, {"B": "2"})


def test_airflow_is_asked_for_them(monkeypatch):
    monkeypatch.setenv("AIRFLOW_CONN_SSL_S3", '{"conn_type": "aws", "login": "key", "password": "secret"}')
    assert with_connections({}, {})[1] == {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}
