"""The Docker runner on a real engine, with an image whose step does what each test says."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import docker
import pytest

from ssl_core.config.runner import RunnerConfig, containers
from ssl_core.config.settings import Settings
from tests.e2e.tools.base_image import base_image
from tests.e2e.tools.job_image import job_image

REPOSITORY = Path(__file__).parents[2]
sys.path.insert(0, str(REPOSITORY / "dags"))

from ssl_dags.runners import gpus  # noqa: E402
from ssl_dags.runners.base import CannotStart, Finished, Job, Unavailable  # noqa: E402
from ssl_dags.runners.containers import GPUS, Plan, name_of  # noqa: E402
from ssl_dags.runners.docker import DockerRunner  # noqa: E402

pytestmark = [pytest.mark.e2e, pytest.mark.docker]

SECRET = "wJalrXUtnFEMIbPxRfiCY"
RESULT = 'open(os.environ["SSL_RESULT_PATH"], "w").write(\'{"made": 1}\')\n'


@pytest.fixture(scope="module")
def image() -> str:
    return job_image(base_image())


@pytest.fixture
def engine() -> Iterator[docker.APIClient]:
    client = docker.APIClient()
    yield client
    for label in ("ssl.home", GPUS, "ssl.helper", "ssl.test"):
        for each in client.containers(all=True, filters={"label": label}):
            if "pytest" in each["Labels"].get(
                "ssl.home", "pytest"
            ):  # a developer's own platform may use the engine too
                client.remove_container(each["Id"], force=True, v=True)


def connect(*_: Any) -> docker.APIClient:
    return docker.APIClient(timeout=60)


class Runs:
    """Jobs of one platform home, each with what it printed."""

    def __init__(self, home: Path, image: str) -> None:
        self.settings = Settings(home=home)
        self.image = image
        home.mkdir(parents=True, exist_ok=True)

    def runner(self, lives: Callable[[Any], bool] = lambda labels: True, **options: Any) -> DockerRunner:
        chosen = RunnerConfig(image=options.pop("image", self.image), **options)
        plan = Plan(containers(chosen, self.settings), self.settings, trains=True)
        return DockerRunner(plan, lives, connect)

    def job(self, do: str, task: str = "pretrain", number: int = 1, **more: Any) -> Job:
        labels = {"ssl.dag_id": "shapes.pretrain", "ssl.run_id": "manual__1", "ssl.task_id": task, "ssl.map_index": "-1", "ssl.try": str(number), "ssl.spec": "same"}  # fmt: skip
        environment = {"SSL_HOME": str(self.settings.root), **more.pop("environment", {})}
        return Job("pretrain", json.dumps({"do": textwrap.dedent(do)}), environment=environment, labels=labels, **more)

    def run(self, do: str, **options: Any) -> tuple[Finished, list[str]]:
        lines: list[str] = []
        return self.runner(**options).run(self.job(do), lines.append), lines


@pytest.fixture
def runs(tmp_path: Path, image: str, engine: docker.APIClient) -> Runs:
    return Runs(tmp_path / "home", image)


def started(run: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(run()), daemon=True)
    thread.start()
    return thread, found


def volumes(engine: docker.APIClient) -> set[str]:
    return {each["Name"] for each in engine.volumes()["Volumes"] or []}


def until(condition: Callable[[], object], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


# ---- one job


def test_spec_in_lines_out_and_the_result_as_bytes(runs, engine):
    lines: list[tuple[float, str]] = []
    before = volumes(engine)
    job = runs.job('print("one"); print("two: ä", flush=True); time.sleep(1); print("three")\n' + RESULT)
    finished = runs.runner().run(job, lambda line: lines.append((time.monotonic(), line)))
    assert finished == Finished(0, b'{"made": 1}')
    assert [line for _, line in lines][1:] == ["one", "two: ä", "three"]
    assert lines[-1][0] - lines[-2][0] > 0.7, "a line comes when it is printed"
    assert engine.containers(all=True, filters={"label": "ssl.dag_id=shapes.pretrain"}) == []
    assert volumes(engine) <= before, "the scratch volume goes with it"


@pytest.mark.parametrize(("code", "result"), [(2, None), (3, b'{"made": 1}'), (75, None), (1, None)])
def test_every_exit_code_comes_back_and_the_report_of_a_failed_check_with_it(runs, code, result):
    finished, _ = runs.run((RESULT if result else "") + f"sys.exit({code})")
    assert (finished.exit_code, finished.result) == (code, result)


@pytest.mark.parametrize(
    "write",
    ['os.symlink("/etc/passwd", path)', "os.mkdir(path)", "pass", 'os.symlink("/nowhere", path)'],
    ids=["link", "folder", "nothing", "broken link"],
)
def test_what_is_no_file_is_no_result(runs, write):
    finished, _ = runs.run(f'path = os.environ["SSL_RESULT_PATH"]\n{write}')
    assert finished == Finished(0, None)


def test_a_huge_result_is_not_read_into_memory(runs):
    finished, _ = runs.run('open(os.environ["SSL_RESULT_PATH"], "wb").write(b"x" * 300_000_000)')
    assert finished.result is not None
    assert len(finished.result) < 100_000


def test_a_container_may_do_little(runs):
    finished, lines = runs.run(
        """
        import pathlib
        status = dict(l.split(":", 1) for l in open("/proc/self/status").read().splitlines() if ":" in l)
        print("uid", os.getuid(), "of", os.stat(os.environ["SSL_HOME"]).st_uid)
        print("capabilities", int(status["CapEff"], 16), int(status["CapBnd"], 16))
        print("privileges", status["NoNewPrivs"].strip())
        print("init", open("/proc/1/comm").read().strip())
        for path in ("/x", "/usr/x", "/opt/job/ssl_core/x"):
            try: open(path, "w")
            except OSError as error: print(path, error.errno)
        for path in ("/tmp/x", "/scratch/x", os.environ["SSL_HOME"] + "/x"):
            open(path, "w"); print("wrote")
        print("shm", os.statvfs("/dev/shm").f_blocks * os.statvfs("/dev/shm").f_frsize)
        print("home", os.environ["HOME"], os.environ["TMPDIR"])
        """,
        shm="128m",
        cpus=1.5,
        memory="256m",
    )
    assert finished.exit_code == 0, lines
    assert lines[1:] == [
        f"uid {os.getuid()} of {os.getuid()}",
        "capabilities 0 0",
        "privileges 1",
        "init docker-init",
        "/x 30",
        "/usr/x 30",
        "/opt/job/ssl_core/x 30",
        "wrote",
        "wrote",
        "wrote",
        f"shm {128 * 2**20}",
        "home /scratch /scratch",
    ]
    assert (runs.settings.root / "x").exists(), "the platform home is at its own place"


def test_with_everything_elsewhere_nothing_of_this_machine_is_mounted(runs, tmp_path, image, engine):
    runs.settings = Settings(
        home=tmp_path / "home",
        store="s3://bucket/store",
        dvc_remote="s3://bucket/dvc",
        data_repo="https://git.invalid/data",
    )
    source = tmp_path / "images"
    source.mkdir()
    (source / "one.txt").write_text("one")
    lines: list[str] = []
    do = f"""
    print(os.getuid(), os.environ["SSL_HOME"], os.environ["SSL_CACHE_DIR"])
    open("/cache/x", "w"); os.makedirs(os.environ["SSL_HOME"])
    print([l.split()[4] for l in open("/proc/self/mountinfo") if "/tmp/" in l or "images" in l])
    print(open(sys.argv[0]).readline()[:6], open("{source}/one.txt").read())
    open("{source}/two.txt", "w")
    """
    finished = runs.runner().run(runs.job(do, reads=(str(source),)), lines.append)
    # What is printed and the traceback are two streams, which the engine reads in either order.
    assert "10001 /scratch/home /cache" in lines
    assert f"['{source}']" in lines
    assert finished.exit_code == 1
    assert "Read-only file system" in "".join(lines)


def test_secrets_are_variables_of_the_job_and_nowhere_else(runs, engine):
    job = runs.job('print(len(os.environ["AWS_SECRET_ACCESS_KEY"]), flush=True); time.sleep(3)', secrets={"AWS_SECRET_ACCESS_KEY": SECRET})  # fmt: skip
    lines: list[str] = []
    thread, _ = started(lambda: runs.runner().run(job, lines.append))
    until(lambda: str(len(SECRET)) in lines)
    [container] = engine.containers(filters={"label": "ssl.dag_id=shapes.pretrain"})
    assert SECRET not in json.dumps(container)
    assert SECRET not in "".join(lines) + repr(job)
    assert SECRET not in subprocess.run(["ps", "axww"], capture_output=True, text=True, check=True).stdout
    thread.join()


# ---- the end


def test_a_stopped_job_saves_and_its_container_is_gone(runs, engine):
    saved = runs.settings.root / "saved"
    do = f"""
    def save(*_):
        open("{saved}", "w").write("yes"); sys.exit(75)
    signal.signal(signal.SIGTERM, save)
    print("up", flush=True); time.sleep(60)
    """
    runner, lines = runs.runner(), []
    thread, found = started(lambda: runner.run(runs.job(do), lines.append))
    until(lambda: "up" in lines)
    began = time.monotonic()
    runner.kill()
    thread.join(10)
    assert found[0].exit_code == 75
    assert time.monotonic() - began < 3
    assert saved.read_text() == "yes"
    assert engine.containers(all=True, filters={"label": "ssl.dag_id=shapes.pretrain"}) == []


def test_a_deaf_job_is_killed_within_airflows_five_seconds(runs, engine):
    do = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('up', flush=True)\ntime.sleep(60)"
    runner, lines = runs.runner(), []
    thread, found = started(lambda: runner.run(runs.job(do), lines.append))
    until(lambda: "up" in lines)
    began = time.monotonic()
    runner.kill()
    took = time.monotonic() - began
    thread.join(10)
    print(f"killed after {took:.1f} s")
    assert took < 5
    assert found[0].exit_code == 137
    assert engine.containers(all=True, filters={"label": "ssl.dag_id=shapes.pretrain"}) == []


def test_out_of_memory_is_told_with_the_setting_to_raise(runs):
    finished, _ = runs.run("x = bytearray(600 * 2**20); print(len(x))", memory="128m")
    assert finished.exit_code == 137
    assert "out of memory, the container needed more than its limit of 0.1 GiB" in finished.cause
    assert "runner.memory (SSL_DOCKER_MEMORY)" in finished.cause


def test_an_exception_in_the_worker_stops_the_job(runs, engine):
    def on_line(line: str) -> None:
        if line == "up":
            raise TimeoutError("Airflow's time-out")

    with pytest.raises(TimeoutError):
        runs.runner().run(runs.job("print('up', flush=True)\ntime.sleep(60)"), on_line)
    [left] = engine.containers(all=True, filters={"label": "ssl.dag_id=shapes.pretrain"}) or [{"State": "gone"}]
    assert left["State"] in ("exited", "gone")


# ---- a worker that was killed

WORKER = """
import json, sys
sys.path[:0] = [{repository!r}, {repository!r} + "/dags"]
from pathlib import Path
from tests.e2e.test_docker_runner import Runs
runs = Runs(Path({home!r}), {image!r})
runs.runner().run(runs.job({do!r}), lambda line: print(line, flush=True))
"""


def killed_worker(runs: Runs, do: str, words: str) -> None:
    """A worker process that is killed as soon as its job has said ``words``."""
    code = WORKER.format(repository=str(REPOSITORY), home=str(runs.settings.root), image=runs.image, do=do)
    worker = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=REPOSITORY)
    assert worker.stdout is not None
    for line in worker.stdout:
        if words in line:
            break
    os.kill(worker.pid, signal.SIGKILL)
    worker.wait()


# Writes down that it was started, and ends when it is told to.
COUNTED = """
home = os.environ["SSL_HOME"]
open(home + "/starts", "a").write("started\\n")
print("up", flush=True)
while not os.path.exists(home + "/enough"):
    time.sleep(0.05)
print("done", flush=True)
open(os.environ["SSL_RESULT_PATH"], "w").write('{"made": 1}')
"""


def test_the_next_try_follows_the_container_of_a_killed_worker(runs, engine):
    killed_worker(runs, COUNTED, "up")
    [left] = engine.containers(filters={"label": "ssl.dag_id=shapes.pretrain"})
    lines: list[str] = []
    thread, found = started(lambda: runs.runner().run(runs.job(COUNTED, number=2), lines.append))
    until(lambda: any("of try 1 still runs: following it" in line for line in lines))
    assert [c["Id"] for c in engine.containers(filters={"label": "ssl.dag_id=shapes.pretrain"})] == [left["Id"]]
    (runs.settings.root / "enough").touch()
    thread.join(20)
    assert found == [Finished(0, b'{"made": 1}')]
    assert lines[-2:] == ["up", "done"], "the last lines of before are shown again"
    assert (runs.settings.root / "starts").read_text() == "started\n"
    assert engine.containers(all=True, filters={"label": "ssl.dag_id=shapes.pretrain"}) == []


def test_the_next_try_takes_the_result_of_a_container_that_ended_meanwhile(runs, engine):
    killed_worker(runs, COUNTED, "up")
    (runs.settings.root / "enough").touch()
    until(lambda: engine.containers(all=True, filters={"label": "ssl.dag_id=shapes.pretrain"})[0]["State"] == "exited")
    lines: list[str] = []
    finished = runs.runner().run(runs.job(COUNTED, number=2), lines.append)
    assert finished.result == b'{"made": 1}'
    assert "taking its result" in lines[0]
    assert (runs.settings.root / "starts").read_text() == "started\n"


def test_a_container_that_failed_meanwhile_is_replaced(runs, engine):
    killed_worker(runs, COUNTED, "up")
    [left] = engine.containers(filters={"label": "ssl.dag_id=shapes.pretrain"})
    engine.kill(left["Id"])
    (runs.settings.root / "enough").touch()
    finished = runs.runner().run(runs.job(COUNTED, number=2), print)
    assert finished.result == b'{"made": 1}'
    assert (runs.settings.root / "starts").read_text() == "started\nstarted\n"


def test_a_cleared_task_that_does_something_else_now_does_not_follow_what_was_asked_before(runs, engine):
    killed_worker(runs, COUNTED, "up")
    lines: list[str] = []
    job = runs.job('print("something else")\n' + RESULT, number=2)
    job.labels["ssl.spec"] = "another"  # type: ignore[index]
    finished = runs.runner().run(job, lines.append)
    assert "does what was asked before; removing it" in lines[0]
    assert lines[-1] == "something else"
    assert finished.result == b'{"made": 1}'
    assert engine.containers(all=True, filters={"label": "ssl.dag_id=shapes.pretrain"}) == []


def test_the_report_of_a_check_that_failed_meanwhile_is_taken(runs, engine):
    failing = COUNTED + "sys.exit(3)\n"
    killed_worker(runs, failing, "up")
    (runs.settings.root / "enough").touch()
    until(lambda: engine.containers(all=True, filters={"label": "ssl.dag_id=shapes.pretrain"})[0]["State"] == "exited")
    assert runs.runner().run(runs.job(failing, number=2), print) == Finished(3, b'{"made": 1}')
    assert (runs.settings.root / "starts").read_text() == "started\n"


def test_a_job_that_is_stopped_while_it_starts_is_not_started(runs, engine):
    runner = runs.runner()
    runner._image = lambda client, image, on_line: (runner.kill(), client.inspect_image(image))[1]  # type: ignore[method-assign]
    with pytest.raises(Unavailable, match="stopped before the container was started"):
        runner.run(runs.job("pass"), print)
    assert engine.containers(all=True, filters={"label": "ssl.dag_id=shapes.pretrain"}) == []


def test_a_name_conflict_is_no_missing_network(runs, engine):
    """The message of the engine holds the container's name, and with it the project's."""
    job = runs.job("pass")
    job.labels["ssl.dag_id"] = "network-traffic.ingest"  # type: ignore[index]
    engine.create_container(runs.image, name=name_of(job, runs.settings), labels={"ssl.test": "1"})
    with pytest.raises(Unavailable, match="already in use"):
        runs.runner().run(job, print)


def test_the_engine_itself_refuses_a_second_container_of_a_task(runs, engine):
    lines: list[str] = []
    thread, _ = started(lambda: runs.runner().run(runs.job(COUNTED), lines.append))
    until(lambda: "up" in lines)
    assert name_of(runs.job(COUNTED), runs.settings) == name_of(runs.job(COUNTED, number=7), runs.settings)
    [running] = engine.containers(filters={"label": "ssl.dag_id=shapes.pretrain"})
    with pytest.raises(docker.errors.APIError, match="already in use"):
        engine.create_container(runs.image, name=running["Names"][0].lstrip("/"))
    (runs.settings.root / "enough").touch()
    thread.join(20)


def test_housekeeping_that_fails_fails_no_job(runs, engine, monkeypatch):
    killed_worker(runs, COUNTED, "up")
    monkeypatch.setattr("ssl_dags.runners.docker._YOUNG_SECONDS", -60.0)

    def lives(labels: Any) -> bool:
        raise RuntimeError("Airflow does not answer")

    lines: list[str] = []
    finished = runs.runner(lives).run(runs.job(RESULT, task="other"), lines.append)
    assert finished.exit_code == 0
    assert any("could not be removed: Airflow does not answer" in line for line in lines)
    assert len(engine.containers(filters={"label": "ssl.task_id=pretrain"})) == 1


def test_what_no_task_wants_is_removed_and_what_one_may_want_is_not(runs, engine, monkeypatch):
    killed_worker(runs, COUNTED, "up")
    monkeypatch.setattr("ssl_dags.runners.docker._YOUNG_SECONDS", -60.0)
    other = runs.job("pass", task="other")
    asked: list[dict[str, str]] = []

    def run(lives: bool) -> list[str]:
        lines: list[str] = []
        runs.runner(lambda labels: asked.append(labels) or lives).run(other, lines.append)
        return lines

    assert not any("removing" in line for line in run(lives=True))
    assert len(engine.containers(filters={"label": "ssl.task_id=pretrain"})) == 1
    assert any("removing the container" in line for line in run(lives=False))
    assert engine.containers(all=True, filters={"label": "ssl.task_id=pretrain"}) == []
    assert asked[-1]["ssl.run_id"] == "manual__1"
    # Another platform home on the same engine is none of ours.
    killed_worker(runs, COUNTED, "up")
    stranger = Runs(runs.settings.root.with_name("other"), runs.image)
    stranger.runner(lambda labels: False).run(stranger.job("pass"), print)
    assert len(engine.containers(filters={"label": "ssl.task_id=pretrain"})) == 1


# ---- what cannot be started


def refused(runs: Runs, kind: type[Exception] = CannotStart, **options: Any) -> str:
    began = time.monotonic()
    with pytest.raises(kind) as error:
        runs.run("pass", **options)
    assert time.monotonic() - began < 10
    assert "next: " in str(error.value)
    return str(error.value)


def test_a_missing_image_names_the_command_that_makes_it(runs):
    said = refused(runs, image="ssl-core-training:9.9.9")
    assert "ssl-core-training:9.9.9 is not on this Docker engine" in said
    assert "make images" in said


def test_an_image_of_another_version_is_refused_with_both(runs):
    said = refused(runs, image=job_image(base_image(), "0.0.7"))
    assert "holds ssl-core 0.0.7, and the platform is ssl-core 0.1.0" in said


def test_an_image_without_ssl_core_is_refused(runs):
    assert "holds no ssl-core" in refused(runs, image=job_image(base_image(), ""))
    assert "no Python" in refused(runs, image=job_image(base_image(), package=False))


def test_a_network_that_is_not_there_or_from_which_a_server_cannot_be_reached(runs):
    assert "no such network" in refused(runs, network="nowhere")
    job = runs.job("pass", environment={"MLFLOW_TRACKING_URI": "http://127.0.0.1:5000"})
    with pytest.raises(CannotStart, match="containers on the network bridge cannot reach"):
        runs.runner(network="bridge").run(job, print)


def test_addresses_for_browsers_are_not_the_containers(runs):
    job = runs.job("pass", environment={"SSL_PUBLIC_MLFLOW_URL": "http://localhost:5000"})
    assert runs.runner(network="bridge").run(job, print).exit_code == 0


def test_an_image_whose_registry_is_away(runs, monkeypatch):
    monkeypatch.setattr("ssl_dags.runners.docker._registry_account", lambda: None)  # Airflow's connections
    assert "can the engine's host reach that registry?" in refused(
        runs, Unavailable, image="127.0.0.1:1/ssl-core-training:0.1.0"
    )


def test_a_source_in_the_platform_home_is_there_already(runs):
    home = str(runs.settings.root)
    assert runs.runner().run(runs.job("pass", reads=(home, home)), print).exit_code == 0


def test_a_source_that_the_engine_does_not_have(runs, tmp_path):
    with pytest.raises(CannotStart, match="does not have this folder"):
        runs.runner().run(runs.job("pass", reads=(str(tmp_path / "gone"),)), print)


def test_a_name_that_is_none_and_limits_that_are_not_possible(runs):
    assert "no name of an image" in refused(runs, image="Bad Image")
    assert "runner.cpus" in refused(runs, cpus=4000)
    assert "runner.memory" in refused(runs, memory="1m")


def test_nothing_is_left_of_what_could_not_be_started(runs, engine):
    refused(runs, network="nowhere")
    assert engine.containers(all=True, filters={"label": "ssl.dag_id=shapes.pretrain"}) == []


# ---- GPUs. There is none here: the engine says so itself, and leases are tried with ids that a preflight would have found.


@pytest.fixture
def no_gpu(engine: docker.APIClient) -> None:
    if "nvidia" in engine.info()["Runtimes"]:
        pytest.skip("this engine has GPUs")


@pytest.mark.usefixtures("no_gpu")
def test_without_a_gpu_the_preflight_says_so_with_the_mend(runs, engine):
    began = time.monotonic()
    said = refused(runs, gpus=1)
    print(f"preflight: {time.monotonic() - began:.1f} s")
    assert "can give no GPU to a container" in said
    assert "SSL_DOCKER_GPUS) to 0" in said
    assert engine.containers(all=True, filters={"label": GPUS}) == []


@pytest.fixture
def four_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "preflight", lambda client, image: ["0", "1", "2", "3"])


def leased(engine: docker.APIClient, image: str, count: int, note: Callable[[str], None] = print, **more: Any) -> str:
    def create(ids: list[str]) -> str:
        made = engine.create_container(
            image, ["sleep", "60"], labels={GPUS: ",".join(ids), "ssl.test": "1"}, name=f"lease-{uuid.uuid4().hex}"
        )
        return str(made["Id"])

    return gpus.lease(engine, image, count, create, note, **({"stopped": lambda: False} | more))


def ids(engine: docker.APIClient, container: str) -> str:
    return str(engine.inspect_container(container)["Config"]["Labels"][GPUS])


@pytest.mark.usefixtures("four_gpus")
def test_a_gpu_that_a_running_container_has_is_not_given_twice(runs, engine):
    first = leased(engine, runs.image, 1)
    engine.start(first)
    second = leased(engine, runs.image, 2)
    engine.start(second)
    assert (ids(engine, first), ids(engine, second)) == ("0", "1,2")
    engine.remove_container(first, force=True)
    assert ids(engine, leased(engine, runs.image, 2)) == "0,3"


@pytest.mark.usefixtures("four_gpus")
def test_a_job_waits_for_a_gpu_says_for_what_and_can_be_stopped(runs, engine):
    first = leased(engine, runs.image, 4)
    engine.start(first)
    notes: list[str] = []
    thread, found = started(lambda: leased(docker.APIClient(), runs.image, 1, notes.append, wait=0.2))
    until(lambda: notes)
    assert "waiting for a GPU: 0 has lease-" in notes[0]
    answers = iter([False, True])  # not yet when it looks, then while it waits
    with pytest.raises(Unavailable, match="stopped while waiting"):
        leased(engine, runs.image, 1, stopped=lambda: next(answers))
    engine.remove_container(first, force=True)
    thread.join(20)
    assert ids(engine, found[0]) == "0"
    with pytest.raises(CannotStart, match="5 GPUs are asked for, and the engine has 4"):
        leased(engine, runs.image, 5)


@pytest.mark.usefixtures("four_gpus")
def test_workers_that_look_at_the_same_moment_get_different_gpus(runs, engine):
    threads = [started(lambda: leased(docker.APIClient(), runs.image, 1)) for _ in range(4)]
    for thread, _ in threads:
        thread.join(60)
    assert sorted(ids(engine, found[0]) for _, found in threads) == ["0", "1", "2", "3"]


def test_a_lock_whose_holder_died_is_taken_over(runs, engine, monkeypatch):
    engine.create_container(runs.image, name=gpus.LOCK_NAME, labels=gpus.HELPER)
    with pytest.raises(Unavailable, match="was not free"), gpus.engine_lock(engine, runs.image, wait=1):
        pass
    monkeypatch.setattr(gpus, "_LOCK_STALE_SECONDS", 0.5)
    with gpus.engine_lock(engine, runs.image, wait=10):
        assert engine.inspect_container(gpus.LOCK_NAME)
    with pytest.raises(docker.errors.NotFound):
        engine.inspect_container(gpus.LOCK_NAME)
