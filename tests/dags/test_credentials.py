from __future__ import annotations

from types import SimpleNamespace

from ssl_dags.credentials import from_connections


def connection(login=None, password=None, **extra):
    return SimpleNamespace(login=login, password=password, extra_dejson=extra)


def test_connections_become_the_usual_variables():
    found = {
        "ssl_s3": connection(
            "AKIAX", "secret", endpoint_url="http://s3", region_name="eu-west-1", aws_session_token="t"
        ),
        "ssl_mlflow": connection("ada", "pw"),
    }
    public, secret = from_connections(found.get)
    assert public == {"AWS_ENDPOINT_URL": "http://s3", "AWS_DEFAULT_REGION": "eu-west-1"}
    assert secret == {
        "AWS_ACCESS_KEY_ID": "AKIAX",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_SESSION_TOKEN": "t",
        "MLFLOW_TRACKING_USERNAME": "ada",
        "MLFLOW_TRACKING_PASSWORD": "pw",
    }


def test_what_a_connection_leaves_empty_stays_as_it_was():
    public, secret = from_connections({"ssl_s3": connection(endpoint_url="http://s3")}.get)
    assert (public, secret) == ({"AWS_ENDPOINT_URL": "http://s3"}, {})


def test_without_connections_there_is_nothing():
    assert from_connections({}.get) == ({}, {})


def test_airflow_is_asked_for_them(monkeypatch):
    monkeypatch.setenv("AIRFLOW_CONN_SSL_S3", '{"conn_type": "aws", "login": "key", "password": "secret"}')
    assert from_connections()[1] == {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}
