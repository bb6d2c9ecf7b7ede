"""What S3 says through s3fs and boto3, in the platform's words; and what is none of its business."""

from __future__ import annotations

import pytest

from ssl_core.errors import TryAgain, UserError
from ssl_core.s3 import explain, split_url
from ssl_core.store import storage_errors

exceptions = pytest.importorskip("botocore.exceptions")


def answer(code: str, message: str = "so it is") -> Exception:
    return exceptions.ClientError({"Error": {"Code": code, "Message": message}}, "GetObject")


def through_s3fs(error: Exception, kind: type[OSError] = OSError) -> OSError:
    made = kind("what s3fs makes of it")
    made.__cause__ = error
    return made


def test_an_address_is_taken_as_it_is_written() -> None:
    assert split_url("s3://bucket") == ("bucket", "")
    assert split_url("s3://bucket/a b/%2F?x#y/") == ("bucket", "a b/%2F?x#y/")


@pytest.mark.parametrize("wrap", [lambda error: error, lambda error: through_s3fs(error, PermissionError)])
@pytest.mark.parametrize(
    ("code", "kind", "cause"),
    [
        ("AccessDenied", UserError, "no right to do this (S3 answers AccessDenied to GetObject)"),
        ("403", UserError, "a wrong access key id or secret, or no right"),
        ("TokenRefreshRequired", TryAgain, "the credentials have expired"),
        ("301", UserError, "another region"),
        ("503", TryAgain, "fewer requests"),
        ("InternalError", TryAgain, "S3 answers InternalError to GetObject: so it is"),
    ],
)
def test_an_answer(code: str, kind: type[Exception], cause: str, wrap) -> None:
    with pytest.raises(kind) as caught, storage_errors("bucket/key"):
        raise wrap(answer(code))
    assert cause in str(caught.value)
    assert str(caught.value).startswith("bucket/key: ")
    assert caught.value.next_step


def test_no_answer() -> None:
    told = explain(exceptions.EndpointConnectionError(endpoint_url="http://me:hush@host/x"), "s3://b")
    assert isinstance(told, TryAgain)
    assert "http://host/x" in str(told)
    assert "hush" not in str(told)
    assert isinstance(explain(exceptions.ReadTimeoutError(endpoint_url="http://host"), "s3://b"), TryAgain)
    assert isinstance(explain(exceptions.SSLError(endpoint_url="http://host", error="x"), "s3://b"), UserError)


def test_what_is_not_there_is_left_to_the_caller_but_a_missing_bucket_is_told() -> None:
    with pytest.raises(FileNotFoundError), storage_errors("bucket/key"):
        raise through_s3fs(answer("NoSuchKey"), FileNotFoundError)
    with pytest.raises(UserError, match="no such bucket"), storage_errors("bucket/key"):
        raise through_s3fs(answer("NoSuchBucket"), FileNotFoundError)


def test_an_error_of_ours_and_a_defect_pass_untouched() -> None:
    """Both may have been raised while an answer of S3 was handled."""
    for error in (UserError("ours", place="here"), ValueError("a defect")):
        error.__cause__ = answer("AccessDenied")
        with pytest.raises(type(error)) as caught, storage_errors("bucket/key"):
            raise error
        assert caught.value is error
