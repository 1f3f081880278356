"""Death at any instant: of a container, of the engine, of our own process; a start-up that hangs (issue 3, items 19-22)."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from protege.agent.loop import roll_out
from protege.config import SETTLE_S, AgentParams, load
from protege.core.instance import Instance
from protege.core.trajectory import Tokens, Trajectory
from protege.errors import BadParams, SandboxDied, SandboxError
from protege.files import Store
from protege.sandbox import images
from protege.sandbox.docker import DockerProvider
from tests.adversarial.test_agent_side import Script, say
from tests.helpers import by
from tests.infra.engine_fixture import engine
from tests.infra.own_server import own_server
from tests.sandbox.fixtures import BACKENDS, PARAMS

__all__ = ["engine"]
ROOT = Path(__file__).parents[2]


# ---- 19: container death, engine restart ----


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a Prefect server of this module's own."""
    with own_server(tmp_path_factory.mktemp("server")) as address:
        yield address


@pytest.fixture(scope="module")
def under_fire(engine, server, tiny, tmp_path_factory) -> Iterator[tuple[dict, Path]]:
    from tests.sandbox.tiny import build_image

    folder = tmp_path_factory.mktemp("fire")
    slow = tiny.instance.eval_script.replace("cd /testbed\n", "cd /testbed\nsleep 2\n", 1)
    with (folder / "instances.jsonl").open("w") as out:
        for name in ("fine", "once", "always", "grade", "restart1", "restart2", "gone", "down"):
            changes = {"instance_id": f"tiny__calc-{name}", **({"eval_script": slow} if name == "grade" else {})}
            out.write(json.dumps(tiny.instance.model_copy(update=changes).to_row()) + "\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DOCKER_HOST", engine.host)
        build_image(tiny)
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests/adversarial/attempts_under_fire.py"), str(engine.folder)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PREFECT_API_URL": server, "DOCKER_HOST": engine.host},
        capture_output=True,
        text=True,
        timeout=300,
    )
    engine.stop()
    engine.start()  # the last attempt stopped it
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1]), folder


@pytest.mark.docker
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "task_runs", "rollouts"),
    [("fine", 1, 1), ("once", 2, 2), ("grade", 2, 1), ("restart1", 2, 2), ("restart2", 2, 2)],
)
def test_a_death_that_a_retry_helps_is_retried(under_fire, name, task_runs, rollouts):
    """ "grade" lost its grading container: its finished rollout is not done again."""
    got = under_fire[0]["outcomes"][name]
    assert got["resolved"] and got["exit"] == "submitted" and got["failure"] is None
    if not name.startswith("restart"):
        assert (got["task_runs"], got["rollouts"]) == (task_runs, rollouts)
    else:  # a retry may come before the engine is back
        assert got["task_runs"] in (2, 3) and got["rollouts"] in (1, 2, 3)


@pytest.mark.docker
@pytest.mark.slow
@pytest.mark.parametrize("name", ["always", "gone", "down"])
def test_a_death_that_no_retry_helps_is_masked(under_fire, name):
    got = under_fire[0]["outcomes"][name]
    assert got["exit"] == "infrastructure" and not got["verdict"] and not got["resolved"]
    assert got["failure"]["boundary"] == "sandbox" and got["failure"]["attempts"] == got["task_runs"]
    assert got["task_runs"] == (3 if name == "always" else 2)
    counts = under_fire[0]["summary"]
    assert counts["instances"] == 8 and counts["graded"] == 5 and counts["resolved"] == 5
    assert counts["infrastructure"] == 3 and f"tiny__calc-{name}" in counts["infrastructure_ids"]
    assert f"tiny__calc-{name}" not in counts["unresolved_ids"]


@pytest.mark.docker
@pytest.mark.slow
def test_a_failed_attempt_waits_for_an_engine_that_is_away(engine, monkeypatch, tmp_path):
    """Two retries are over in seconds; an engine takes longer to come back."""
    from tasks.units import Bench, _await_engine

    monkeypatch.setenv("DOCKER_HOST", engine.host)
    bench = Bench(DockerProvider(PARAMS), AgentParams(), PARAMS, retries=2, store=Store(tmp_path), patience_s=120)
    engine.stop()
    back = threading.Timer(3, engine.start)
    back.start()
    began = time.monotonic()
    _await_engine(bench)
    waited = time.monotonic() - began
    back.join()
    assert 2.5 < waited < 110 and engine.answers()


def test_retries_are_spaced():
    """Prefect works the delays out from the retries it is given with them; given none, it retried at once."""
    code = (
        "import tasks\nfrom tasks.units import retrying\n"
        "print(retrying(2).retries, retrying(2).with_options(task_run_name='x').retry_delay_seconds)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "2 [2, 4]", done.stderr


def check_masked(trajectories: list[Trajectory], rows: dict[str, Instance], tmp_path: Path, monkeypatch) -> None:
    """The code of stage rl makes no reward of them: None to the trainer, never 0."""
    from flows.rl import Rollouts
    from protege.train.rollouts import pack, summarise

    monkeypatch.chdir(tmp_path)
    params = load(ROOT / "profiles/smoke.yaml")
    scorer = Rollouts.__new__(Rollouts)
    scorer.params, scorer.rows = params, rows
    results = scorer._scored(trajectories, 0)
    assert all(result.tokens is None and result.terms == {} for result in results)
    assert pack(results, params.rl, 0)["reward"] == [None] * len(results)
    assert summarise(0, results, params.rl)["masked"] == len(results)


@pytest.mark.docker
@pytest.mark.slow
def test_what_was_masked_reaches_the_trainer_without_a_reward(under_fire, tiny, tmp_path, monkeypatch):
    found = [Trajectory.model_validate(t) for t in json.loads((under_fire[1] / "masked.json").read_text())]
    assert len(found) == 3
    check_masked(found, {t.instance_id: tiny.instance for t in found}, tmp_path, monkeypatch)


def test_a_failed_grading_is_masked_though_the_rollout_is_whole(tmp_path, monkeypatch):
    from protege.core.trajectory import Failure
    from tests.helpers import make_instance, make_trajectory, make_verdict

    failure = Failure(boundary="sandbox", error="GradingError", message="the container died", attempts=3)
    tokens = Tokens(ids=[1, 2], mask=[0, 1], logprobs=[0.0, -1.0], prompt_length=1)
    whole = make_trajectory([], exit_status="infrastructure", failure=failure, tokens=tokens)
    judged = whole.model_copy(update={"trajectory_id": "t1", "verdict": make_verdict(False)})
    check_masked([whole, judged], {whole.instance_id: make_instance()}, tmp_path, monkeypatch)


# ---- 20: a sandbox's lifetime and a rollout's limit ----

LOOP = [say("bash", command="echo x >> loop.txt; sleep 0.5")] * 60


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_rollout_ends_by_its_own_limit_with_its_diff(backend, make_provider, tiny):
    limits = AgentParams(step_limit=60, time_limit_s=5)
    tight = make_provider(backend, PARAMS.model_copy(update={"lifetime_s": 5 + SETTLE_S}))
    t = roll_out(tiny.instance, Script(*LOOP), None, tight, limits, 0, trajectory_id="t")
    assert t.exit_status == "time_limit" and "+++ b/loop.txt" in t.patch


@pytest.mark.parametrize("backend", BACKENDS)
def test_equal_limits_are_refused_before_a_sandbox_is_opened(backend, make_provider, tiny, monkeypatch):
    equal = make_provider(backend, PARAMS.model_copy(update={"lifetime_s": 2}))
    monkeypatch.setattr(equal, "open", lambda instance: pytest.fail("opened"))
    with pytest.raises(BadParams, match=r"sandbox\.lifetime_s.*agent\.time_limit_s"):
        roll_out(tiny.instance, Script(*LOOP), None, equal, AgentParams(time_limit_s=2), 0, trajectory_id="t")


def test_without_that_check_the_work_would_be_lost(make_provider, tiny, monkeypatch):
    """What the check is for: at equal limits the sandbox may go first, and the diff with it."""
    monkeypatch.setattr("protege.agent.loop.lifetime_problem", lambda *_: "")
    equal = make_provider("bubblewrap", PARAMS.model_copy(update={"lifetime_s": 2}))
    with pytest.raises(SandboxDied):
        roll_out(tiny.instance, Script(*LOOP), None, equal, AgentParams(time_limit_s=2), 0, trajectory_id="t")


def test_the_params_name_both_keys(tmp_path):
    import yaml

    raw = yaml.safe_load((ROOT / "profiles/smoke.yaml").read_text())
    raw["sandbox"]["lifetime_s"] = raw["agent"]["time_limit_s"]
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(raw))
    with pytest.raises(BadParams, match=r"sandbox\.lifetime_s.*agent\.time_limit_s"):
        load(tmp_path / "params.yaml")


# ---- 21: a start-up that hangs ----


class Proxy:
    """Between us and the engine: passes everything on, but holds up the first call that matches ``stall``.

    ``how`` is "request" (the engine never hears of it) or "reply" (it acts, and we never hear of that).
    """

    def __init__(self, target: str, path: Path) -> None:
        self.target, self.path = target.removeprefix("unix://"), path
        self.stall, self.how = b"", ""
        self.stalled = threading.Event()
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(200)
        threading.Thread(target=self._accept, daemon=True).start()

    def arm(self, stall: bytes, how: str) -> None:
        self.stalled.clear()
        self.stall, self.how = stall, how

    def close(self) -> None:
        for sock in [self._listener, *self._sockets]:
            with suppress(OSError):
                sock.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                ours, _ = self._listener.accept()
                theirs = socket.socket(socket.AF_UNIX)
                theirs.connect(self.target)
                self._sockets += [ours, theirs]
                held = threading.Event()
                threading.Thread(target=self._up, args=(ours, theirs, held), daemon=True).start()
                threading.Thread(target=self._down, args=(theirs, ours, held), daemon=True).start()

    def _hold(self, data: bytes) -> bool:
        with self._lock:
            hit = bool(self.stall) and not self.stalled.is_set() and self.stall in data.split(b"\r\n", 1)[0]
            if hit:
                self.stalled.set()
            return hit

    def _up(self, ours: socket.socket, theirs: socket.socket, held: threading.Event) -> None:
        with suppress(OSError):
            while data := ours.recv(65536):
                if self._hold(data):
                    held.set()
                if held.is_set() and self.how == "request":
                    continue
                theirs.sendall(data)
            theirs.shutdown(socket.SHUT_WR)

    def _down(self, theirs: socket.socket, ours: socket.socket, held: threading.Event) -> None:
        with suppress(OSError):
            while data := theirs.recv(65536):
                if not held.is_set():
                    ours.sendall(data)
            if not held.is_set():
                ours.shutdown(socket.SHUT_WR)


@pytest.fixture
def proxy(tmp_path_factory, monkeypatch) -> Iterator[Proxy]:
    between = Proxy(os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock"), tmp_path_factory.mktemp("p") / "sock")
    monkeypatch.setenv("DOCKER_HOST", f"unix://{between.path}")
    yield between
    between.close()


def own_containers() -> set[str]:
    monkey = os.environ.pop("DOCKER_HOST", None)
    try:
        client = images.docker_client()
        label = f"protege.run={images.owner()}"
        return {item["Id"] for item in client.api.containers(all=True, filters={"label": label})}
    finally:
        if monkey:
            os.environ["DOCKER_HOST"] = monkey


@pytest.mark.docker
@pytest.mark.parametrize("how", ["request", "reply"])
@pytest.mark.parametrize("call", ["/containers/create", "/start", "/attach"])
def test_a_start_that_hangs_holds_up_nobody_and_leaves_nothing(docker_image, tiny, proxy, call, how):
    before = own_containers()
    # On a busy machine the siblings may take longer than a short limit; were they held up, no limit would let them be first.
    assert any(siblings_come_first(tiny, proxy, call, how, limit) for limit in (4.0, 15.0, 60.0))
    assert by(60, lambda: not own_containers() - before)


def siblings_come_first(tiny, proxy: Proxy, call: str, how: str, limit: float) -> bool:
    """While one start hangs until ``limit`` s, start and use three; were they done before it had ended?"""
    params = PARAMS.model_copy(update={"start_timeout_s": limit})
    provider = DockerProvider(params, client=images.docker_client(timeout=limit))
    outcome: list[BaseException | str] = []

    def hang() -> None:
        try:
            provider.open(tiny.instance).close()
            outcome.append("opened")
        except BaseException as error:
            outcome.append(error)

    proxy.arm(call.encode(), how)
    hung = threading.Thread(target=hang)
    hung.start()
    assert proxy.stalled.wait(60)
    try:
        for _ in range(3):
            with provider.open(tiny.instance) as box:
                assert box.exec("echo ok").output == "ok\n"
        first = not outcome
    except SandboxError:  # slower than the limit themselves
        first = False
    hung.join(limit * 4 + 60)
    assert not hung.is_alive()
    assert outcome and isinstance(outcome[0], SandboxError), outcome
    return first


# ---- 22: SIGKILL of our process ----

WRITER = """
import sys, itertools
from protege.files import Store, write_atomic
store = Store(sys.argv[1])
print("ready", flush=True)
for number in itertools.count():
    store.put("unit", f"{number % 5:040d}", {"number": number, "text": str(number % 10) * 3_000_000})
"""


def test_no_instant_of_death_leaves_half_a_unit(tmp_path):
    rng = random.Random(5)
    store, seen = Store(tmp_path / "store"), 0
    rounds = 0
    while rounds < 12 or (seen < 10 and rounds < 200):  # on a busy machine a writer gets further in a longer while
        rounds += 1
        child = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(store.root)],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        assert child.stdout is not None and child.stdout.readline() == b"ready\n"
        time.sleep(rng.uniform(0.0, 0.0125 * max(rounds, 12)))
        child.kill()
        child.wait()
        child.stdout.close()
        for path in store.root.rglob("*.json"):
            if path.name.startswith("."):
                continue
            value = json.loads(path.read_text())
            assert len(value["text"]) == 3_000_000
            assert store.get("unit", path.stem) == value
            seen += 1
    assert seen >= 10


HOLDER = """
import sys, time, pathlib
from protege.datasets.load import load_instances
from tests.sandbox.fixtures import PARAMS
row = load_instances(pathlib.Path(sys.argv[2]))[0]
if sys.argv[1] == "docker":
    from protege.sandbox.docker import DockerProvider
    provider = DockerProvider(PARAMS)
else:
    from protege.sandbox.bubblewrap import BubblewrapProvider
    provider = BubblewrapProvider(PARAMS, pathlib.Path(sys.argv[3]), pathlib.Path(sys.argv[4]))
box = provider.open(row)
box.exec("(sleep 97531.0246 &) ; sleep 0.1", timeout=5)
print(box.id, flush=True)
box.exec("sleep 97531.0246", timeout=300)
"""


def running_inside(argument: str) -> list[int]:
    """Processes of this machine, in whatever namespace, whose command line has ``argument``."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if argument.encode() in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
    return found


@contextmanager
def holder(backend: str, tiny, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps(tiny.instance.to_row()) + "\n")
    child = subprocess.Popen(
        [sys.executable, "-c", HOLDER, backend, str(rows), str(tiny.testbeds), str(tiny.site)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    try:
        assert child.stdout is not None
        name = child.stdout.readline().strip()
        assert name
        yield child, name
    finally:
        child.kill()
        child.wait()
        child.stdout.close()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_killed_process_leaves_nothing_that_the_next_start_does_not_take_away(backend, make_provider, tiny, tmp_path):
    provider = make_provider(backend)
    with holder(backend, tiny, tmp_path) as (child, name):
        assert by(60, lambda: running_inside("97531.0246"))
        child.send_signal(signal.SIGKILL)
        child.wait()
    if backend == "bubblewrap":  # its commands die with it, before any start
        assert by(60, lambda: not running_inside("97531.0246"))
        make_provider(backend)
        from protege.sandbox.bubblewrap import sandboxes_folder as _folder

        assert not (_folder() / name).exists()
        return
    make_provider(backend)  # here, unless that of a test beside this one did already
    assert provider.client.api.containers(all=True, filters={"id": name}) == []
    assert running_inside("97531.0246") == []


@pytest.mark.docker
def test_the_next_start_leaves_a_living_process_its_sandboxes(make_provider, tiny, tmp_path):
    with holder("docker", tiny, tmp_path) as (_, name):
        provider = make_provider("docker")
        assert provider.client.api.containers(filters={"id": name})
    make_provider("docker")
