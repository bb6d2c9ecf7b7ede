import pytest
from pydantic import ValidationError

from ssl_core.config.settings import Settings


def test_everything_lies_below_the_home_unless_set(tmp_path):
    settings = Settings(home=tmp_path)
    assert settings.store_url == (tmp_path / "store").as_uri()
    assert settings.data_repo_url == str(tmp_path / "data.git")
    assert settings.tracking_url == "http://127.0.0.1:5000"
    assert Settings(home=tmp_path, store="s3://b/p").store_url == "s3://b/p"


@pytest.mark.parametrize(
    "name",
    [
        "MLFLOW_TRACKING_URI",
        "SSL_PUBLIC_MLFLOW_URL",
        "SSL_DATA_REPO",
        "SSL_DVC_REMOTE",
        "SSL_STORE",
        "SSL_MLFLOW_ARTIFACTS",
    ],
)
@pytest.mark.parametrize("url", ["http://me:secretpw@host", "https://secretpw@host/x", "s3://key:secretpw@bucket"])
def test_an_address_with_a_secret_is_refused_and_not_repeated(monkeypatch, name, url):
    monkeypatch.setenv(name, url)
    with pytest.raises(ValidationError) as caught:
        Settings()
    assert "secretpw" not in caught.value.errors()[0]["msg"]


def test_a_git_user_is_no_secret():
    assert Settings(data_repo="ssh://git@host/data.git").data_repo_url == "ssh://git@host/data.git"


def test_a_job_gets_an_allow_list_split_into_public_and_secret(monkeypatch, tmp_path):
    for name in ("HOME_GROWN", "DATABASE_PASSWORD", "SSL_STEP_SPEC"):
        monkeypatch.setenv(name, "no")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:1")
    monkeypatch.setenv("SSL_CACHE_LIMIT_GB", "3")
    for name in ("AWS_PROFILE", "AWS_CONFIG_FILE", "AWS_CA_BUNDLE", "AWS_WEB_IDENTITY_TOKEN_FILE"):
        monkeypatch.setenv(name, "here")
    monkeypatch.setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN", "hush")
    public, secret = Settings(home=tmp_path).job_environment()
    assert secret["AWS_SECRET_ACCESS_KEY"] == "hush"
    assert "hush" not in public.values()
    assert "no" not in {*public.values(), *secret.values()}
    assert public["SSL_HOME"] == str(tmp_path)
    assert public["AWS_ENDPOINT_URL_S3"] == "http://127.0.0.1:1"
    assert public["SSL_CACHE_LIMIT_GB"] == "3"
    assert public["AWS_PROFILE"] == public["AWS_WEB_IDENTITY_TOKEN_FILE"] == "here"
    assert secret["AWS_CONTAINER_AUTHORIZATION_TOKEN"] == "hush"
