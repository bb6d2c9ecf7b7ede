"""What a job's container sees, what it may do, and as whom it runs: plain data, for the Docker runner and for the doctor, who tries it."""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from ssl_core import __version__
from ssl_core.config.runner import Containers
from ssl_core.config.settings import Settings

SCRATCH = "/scratch"
PLATFORM_LABEL = "ssl.platform"
VERSION_LABEL = "ssl-core.version"
"""Label of the training image: the version of the ssl-core in it."""
NO_GPU_DRIVER = (
    "could not select device driver", "no known GPU vendor", "unresolvable CDI devices", "nvidia-container-cli",
)  # fmt: skip
"""What engines answer that cannot give a GPU to a container."""
_ID_FILE = "platform-id"
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_FOR_BROWSERS = ("SSL_AIRFLOW_URL", "SSL_PUBLIC_MLFLOW_URL")
_CACHE = "/cache"
_CACHE_VOLUME = "ssl-core-cache"
_JOB_USER = "10001:10001"
_MOST_PROCESSES = 4096
_MEMORY_SHARE = 0.9
_PROXIES = ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
# Paths of this machine, which mean nothing in the image: it has its own certificates, and no files of the AWS chain.
_NOT_INSIDE = (
    "SSL_CERT_FILE", "SSL_CERT_DIR", "SSL_JOB_PYTHON", "SSL_AIRFLOW_VENV", "SSL_PROJECTS_DIR", "SSL_PLATFORM_ID",
    "AWS_PROFILE", "AWS_DEFAULT_PROFILE", "AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE", "AWS_CA_BUNDLE",
    "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
)  # fmt: skip


def platform_id(settings: Settings) -> str:
    """What tells this platform's containers from those of others on the same engine: made once, kept in the platform home.

    A path would not do: homes on two machines, or in two containers, may have the same one.
    """
    file = settings.root / _ID_FILE
    with suppress(FileNotFoundError):
        return file.read_text(encoding="ascii").strip()
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{_ID_FILE}.{uuid.uuid4().hex}")
    temporary.write_text(uuid.uuid4().hex[:16], encoding="ascii")
    try:
        os.link(temporary, file)  # the first of two that come at once wins
    except FileExistsError:
        pass
    finally:
        temporary.unlink()
    return file.read_text(encoding="ascii").strip()


def has_platform_id(settings: Settings) -> bool:
    """Whether this platform may have made a container at all."""
    return (settings.root / _ID_FILE).exists()


def held_instead(image: Mapping[str, Any]) -> str:
    """What an image (as the engine describes it) holds instead of this ssl-core; empty where it is this one."""
    version = ((image.get("Config") or {}).get("Labels") or {}).get(VERSION_LABEL)
    if version == __version__:
        return ""
    return f"ssl-core {version}" if version else f"no ssl-core (it lacks the label {VERSION_LABEL})"


def out_of_reach(variables: Mapping[str, str], network: str, *, remote: bool = False) -> tuple[str, str] | None:
    """Name and value of an address on this machine's loopback that a job's container cannot reach; None where there is none.

    ``remote``: the engine is on another machine.
    """
    if network == "host" and not remote:
        return None
    for name, value in variables.items():
        if name not in _FOR_BROWSERS and "://" in value and urlsplit(value).hostname in _LOOPBACK:
            return name, value
    return None


def job_container(
    options: Containers,
    settings: Settings,
    public: Mapping[str, str],
    secret: Mapping[str, str],
    engine: Mapping[str, Any],
) -> dict[str, Any]:
    """``environment``, ``user`` and ``working_dir`` of a container, from a job's ``(public, secret)`` variables.

    ``engine``: what the engine says of itself (``docker info``).
    """
    mounted = bool(local_places(settings))
    return {
        "environment": {
            **{name: os.environ[name] for name in _PROXIES if name in os.environ},
            **{name: value for name, value in public.items() if name not in _NOT_INSIDE},
            **({} if mounted else {"SSL_HOME": f"{SCRATCH}/home", "SSL_CACHE_DIR": _CACHE}),
            "HOME": SCRATCH,
            "TMPDIR": SCRATCH,
            "PYTHONUNBUFFERED": "1",
            **options.environment,
            **secret,
        },
        "user": _owner(engine) if mounted else _JOB_USER,
        "working_dir": SCRATCH,
    }


def _owner(engine: Mapping[str, Any]) -> str:
    """Whose the mounted folders are: the caller, whom a rootless engine shows as root inside its containers."""
    rootless = any("rootless" in option for option in engine.get("SecurityOptions") or [])
    return "0:0" if rootless else f"{os.getuid()}:{os.getgid()}"


def host_limits(options: Containers, settings: Settings, engine: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of docker's ``create_host_config``: mounts, rights, limits."""
    places = local_places(settings)
    memory = options.memory or int(engine["MemTotal"] * _MEMORY_SHARE)
    return {
        "mounts": [
            mount(SCRATCH),
            *(mount(str(place), str(place)) for place in places),
            *([] if places else [mount(_CACHE, _CACHE_VOLUME, kind="volume")]),
        ],
        "group_add": [str(group) for group in os.getgroups()] if places else None,
        "network_mode": options.network,
        "init": True,  # forwards signals to the step and reaps what it leaves
        "read_only": True,
        # For what does not ask for TMPDIR.
        "tmpfs": {"/tmp": "rw,nosuid,nodev,mode=1777,size=256m"},  # noqa: S108
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges"],
        "pids_limit": _MOST_PROCESSES,
        "mem_limit": memory,
        "memswap_limit": memory,  # no swap: a step that needs more says so rather than crawl
        "nano_cpus": int(options.cpus * 1e9) if options.cpus else None,
        "shm_size": options.shm,
    }


def mount(target: str, source: str | None = None, *, kind: str = "", read_only: bool = False) -> dict[str, Any]:
    """A mount in the engine's own words; without a source a volume that goes with its container."""
    return {
        "Target": target,
        "Source": source,
        "Type": kind or ("bind" if source else "volume"),
        "ReadOnly": read_only,
    }


def local_places(settings: Settings) -> list[Path]:
    """The folders of this machine that jobs write: none where store, data repository and DVC remote are all elsewhere."""
    urls = (settings.store_url, settings.data_repo_url, settings.dvc_remote_url)
    places = [path for path in map(_local, urls) if path is not None]
    if not places:
        return []
    places = [settings.root, settings.cache, *places]
    return sorted({p for p in places if not any(p != other and p.is_relative_to(other) for other in places)})


def _local(url: str) -> Path | None:
    if url.startswith("file://"):
        return Path(unquote(urlsplit(url).path))
    # git's host:path is a URL as well
    return None if "://" in url or ":" in url.partition("/")[0] else Path(url).absolute()
