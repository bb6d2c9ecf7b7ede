"""S3 as boto3 sees it: an address taken apart, a client, and what S3 or the way to it says, in the platform's words."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ssl_core.errors import StepError, TryAgain, UserError

_ATTEMPTS = 5  # with back-off: about seven seconds, at most fifteen, before a server that does not answer is given up
_CREDENTIALS = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE; in a cloud, give the machine a role"
_RIGHTS = (
    "these credentials need s3:ListBucket on the bucket and s3:GetObject on its objects to read, and s3:PutObject and "
    "s3:DeleteObject to write; AWS_ACCESS_KEY_ID or AWS_PROFILE say whose they are"
)
_REGION = "set AWS_DEFAULT_REGION to the bucket's region"
_SIGN_IN = "sign in again (aws sso login), or renew AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN"
_WAIT = "check AWS_ENDPOINT_URL, and that the storage is up; then run the same command again: it goes on from what has arrived"

# What S3 answers -> who must act, the cause, the next step.
_ANSWERS: dict[str, tuple[type[StepError], str, str]] = {
    "NoSuchBucket": (UserError, "there is no such bucket", "correct the name, make the bucket, or check AWS_ENDPOINT_URL"),
    "InvalidBucketName": (UserError, "this is no name of a bucket", "correct the name"),
    "AccessDenied": (UserError, "no right to do this", _RIGHTS),
    "AllAccessDisabled": (UserError, "no right to do this", _RIGHTS),
    # To a question without a body (HEAD) S3 answers without a reason.
    "403": (
        UserError, "refused: a wrong access key id or secret, or no right to do this",
        "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or AWS_PROFILE); " + _RIGHTS.partition(";")[0],
    ),
    "SignatureDoesNotMatch": (
        UserError, "the secret access key is wrong", "check AWS_SECRET_ACCESS_KEY, or the secret of AWS_PROFILE",
    ),
    "InvalidAccessKeyId": (
        UserError, "the access key id is not known there", "check AWS_ACCESS_KEY_ID or AWS_PROFILE, and AWS_ENDPOINT_URL",
    ),
    "InvalidToken": (UserError, "the session token is not valid", "check AWS_SESSION_TOKEN, or unset it"),
    "RequestTimeTooSkewed": (
        UserError, "the clock of this machine is wrong: S3 refuses what seems more than 15 minutes old or new",
        "set the clock (timedatectl set-ntp true), then run again",
    ),
    "ExpiredToken": (TryAgain, "the credentials have expired", _SIGN_IN),
    "PermanentRedirect": (UserError, "the bucket is in another region", _REGION),
    "AuthorizationHeaderMalformed": (UserError, "the bucket is in another region", _REGION),
    "IllegalLocationConstraintException": (UserError, "the bucket is in another region", _REGION),
    "SlowDown": (TryAgain, "the storage asks for fewer requests", "run the same command again in a while"),
}  # fmt: skip
_SAME = {
    "Forbidden": "403",
    "AccountProblem": "AccessDenied",
    "AuthorizationError": "AccessDenied",
    "301": "PermanentRedirect",
    "ExpiredTokenException": "ExpiredToken",
    "TokenRefreshRequired": "ExpiredToken",
    "RequestExpired": "ExpiredToken",
    "503": "SlowDown",
}
# What botocore raises where there is no answer, by class name, the more special ones first.
_NO_ANSWER: tuple[tuple[str, type[StepError], str, str], ...] = (
    ("NoCredentialsError", UserError, "no AWS credentials were found", _CREDENTIALS),
    ("PartialCredentialsError", UserError, "the AWS credentials are incomplete", _CREDENTIALS),
    ("ProfileNotFound", UserError, "there is no such AWS profile", "check AWS_PROFILE and AWS_CONFIG_FILE"),
    ("SSOError", TryAgain, "the single sign-on has expired", _SIGN_IN),
    ("TokenRetrievalError", TryAgain, "the single sign-on has expired", _SIGN_IN),
    ("LoginError", TryAgain, "the sign-in has expired", _SIGN_IN),
    ("CredentialRetrievalError", TryAgain, "the AWS credentials could not be fetched", _CREDENTIALS),
    ("MetadataRetrievalError", TryAgain, "the AWS credentials could not be fetched", _CREDENTIALS),
    ("NoRegionError", UserError, "no AWS region is set", _REGION),
    ("SSLError", UserError, "the storage's certificate is not trusted", "set AWS_CA_BUNDLE to the file of your certificate authority"),
    ("ProxyConnectionError", TryAgain, "the proxy cannot be reached", "check HTTPS_PROXY and NO_PROXY, then run again"),
    ("ConnectionError", TryAgain, "the storage cannot be reached", _WAIT),
    ("HTTPClientError", TryAgain, "the connection to the storage broke off", _WAIT),
    ("IncompleteReadError", TryAgain, "the connection to the storage broke off", _WAIT),
    ("ParamValidationError", UserError, "this is no name that S3 can have", "correct the address"),
    ("ConfigParseError", UserError, "the AWS configuration cannot be read", "mend the file, or set AWS_CONFIG_FILE"),
    ("InvalidConfigError", UserError, "the AWS configuration is wrong", "mend the file, or set AWS_CONFIG_FILE"),
)  # fmt: skip


def split_url(url: str) -> tuple[str, str]:
    """``s3://bucket/a/b`` as ``("bucket", "a/b")``; what follows the bucket is taken as it is written."""
    bucket, _, key = url.removeprefix("s3://").partition("/")
    return bucket, key


def make_session() -> Any:
    """A botocore session: the usual chain of credentials, and no time lost on time stamps."""
    import botocore.session

    core = botocore.session.get_session()
    # Half of what a listing costs is its modification times, which nobody reads here.
    core.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=str)
    return core


def make_client(session: Any, *, connections: int = 10) -> Any:
    """An S3 client that tries again with back-off and does not wait for ever. Raises ``UserError`` for a wrong configuration."""
    import boto3
    from botocore.config import Config

    config = Config(
        connect_timeout=10,
        read_timeout=60,
        max_pool_connections=connections,
        retries=None
        if {"AWS_MAX_ATTEMPTS", "AWS_RETRY_MODE"} & set(os.environ)
        else {"mode": "standard", "total_max_attempts": _ATTEMPTS},
    )
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL", "")
    try:
        return boto3.Session(botocore_session=session).client("s3", config=config)
    except ValueError as error:  # botocore repeats the address, which may hold a password
        if _is_botocore(error):
            raise
        raise UserError(
            "not an address of a server" if endpoint else "the AWS configuration is wrong",
            place="AWS_ENDPOINT_URL" if endpoint else "AWS_CONFIG_FILE",
            next_step="set it to something like https://s3.example.com",
        ) from error


@contextmanager
def s3_errors(place: str) -> Iterator[None]:
    """Turns what boto3 raises into ``UserError`` or ``TryAgain`` with the place and the mend."""
    try:
        yield
    except Exception as error:
        known = explain(error, place)
        if known is None:
            raise
        raise known from error


def explain(error: BaseException, place: str) -> StepError | None:
    """The platform's error for what boto3 (or a library upon it) raised at ``place``; None for any other exception."""
    found = _root(error)
    if found is None:
        return None
    code = error_code(found)
    if not code:
        for name, kind, cause, next_step in _NO_ANSWER:
            if any(base.__name__ == name for base in type(found).__mro__):
                return kind(f"{cause} ({_first_line(found)})", place=place, next_step=next_step)
        return TryAgain(f"storage failed: {_first_line(found)}", place=place, next_step=_WAIT)
    answer = _ANSWERS.get(_SAME.get(code, code))
    operation = getattr(found, "operation_name", "")
    said = f"S3 answers {code}" + (f" to {operation}" if operation else "")
    if answer is not None:
        kind, cause, next_step = answer
        return kind(f"{cause} ({said})", place=place, next_step=next_step)
    message = found.response["Error"].get("Message", "")  # type: ignore[attr-defined]
    return TryAgain(f"storage failed: {said}: {' '.join(str(message).split())[:300]}", place=place, next_step=_WAIT)


def error_code(error: BaseException) -> str:
    """What S3 answered, for example ``NoSuchKey`` or, without a body, ``404``; empty where it did not answer."""
    response = getattr(error, "response", None)
    if not isinstance(response, dict):
        return ""
    code = str(response.get("Error", {}).get("Code", ""))
    return code or str(response.get("ResponseMetadata", {}).get("HTTPStatusCode", ""))


def _root(error: BaseException) -> BaseException | None:
    """botocore's (or aiohttp's) exception behind ``error``: s3fs makes an ``OSError`` of what the server answers."""
    cause: BaseException | None = error
    while cause is not None and not _is_botocore(cause):
        # Behind any other exception, an answer of S3 is past history: to name it would hide a defect.
        cause = (cause.__cause__ or cause.__context__) if isinstance(cause, OSError) else None
    return cause


def _is_botocore(error: BaseException) -> bool:
    for module, name in (
        ("botocore.exceptions", "BotoCoreError"),
        ("botocore.exceptions", "ClientError"),
        ("aiohttp", "ClientError"),
    ):
        if module in sys.modules and isinstance(error, getattr(sys.modules[module], name)):
            return True
    return False


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return re.sub(r"://[^@/\s]*@", "://", lines[0])[:300] if lines else type(error).__name__
