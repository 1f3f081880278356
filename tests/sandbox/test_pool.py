"""The pool, against real sandboxes where it can be, and against a provider that hangs and fails on purpose."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace

import pytest

from protege.config import SandboxParams
from protege.errors import SandboxError
from protege.sandbox.pool import Starts, WarmPool
from tests.helpers import make_instance

PARAMS = SandboxParams(warm=2, starts=2)


class Provider:
    """Opens what stands for a sandbox, and counts."""

    backend = "docker"

    def __init__(self, take_s: float = 0.0) -> None:
        self.take_s = take_s
        self.opened: list[str] = []
        self.living: set[str] = set()
        self.at_once = self.most = 0
        self.broken = 0
        self.hang = threading.Event()
        self.hang.set()
        self.digest = "sha256:1"
        self._lock = threading.Lock()

    def open(self, instance):
        with self._lock:
            self.at_once += 1
            self.most = max(self.most, self.at_once)
        try:
            if instance.instance_id == "hangs":
                self.hang.wait(30)
            time.sleep(self.take_s)
            with self._lock:
                if self.broken:
                    self.broken -= 1
                    raise SandboxError("the engine failed")
                name = f"{instance.instance_id}-{len(self.opened)}"
                self.opened.append(name)
                self.living.add(name)

            def execute(command, timeout=None):
                if name not in self.living:
                    raise SandboxError("dead")
                return SimpleNamespace(exit_code=0)

            return SimpleNamespace(
                id=name,
                image_digest=self.digest,
                exec=execute,
                live_for=lambda seconds: None,
                close=lambda: self.living.discard(name),
            )
        finally:
            with self._lock:
                self.at_once -= 1

    def image_digest(self, instance):
        return self.digest

    def check(self, instances): ...


def instance(name: str):
    return make_instance(instance_id=name)


def until(condition, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.01)


def test_what_is_planned_is_warm_once_each_and_never_more_than_allowed():
    provider = Provider(take_s=0.02)
    plan = [instance(f"i{n % 3}") for n in range(9)]
    with WarmPool(provider, PARAMS) as pool:
        pool.plan(plan)
        given = []
        for one in plan:
            until(lambda: len(provider.living) - len(given) == min(2, len(plan) - len(given)))
            time.sleep(0.05)
            assert len(provider.living) - len(given) <= PARAMS.warm
            sandbox = pool.open(one)
            assert sandbox.id.startswith(one.instance_id)
            given.append(sandbox.id)
        assert len(set(given)) == len(plan) == len(provider.opened)  # each handed out once, none made in vain
    assert provider.living == set(given)


def test_closing_removes_what_was_never_used_and_what_is_still_coming():
    provider = Provider(take_s=0.2)
    pool = WarmPool(provider, PARAMS)
    pool.plan([instance("a"), instance("b"), instance("c")])
    until(lambda: len(provider.living) >= 1)
    pool.close()
    until(lambda: not provider.living)


def test_a_start_under_way_is_waited_for_and_not_doubled():
    provider = Provider(take_s=0.4)
    with WarmPool(provider, PARAMS) as pool:
        pool.plan([instance("a")])
        until(lambda: provider.at_once == 1)
        pool.open(instance("a"))
        assert len(provider.opened) == 1


def test_what_has_died_or_whose_image_has_changed_is_not_handed_out():
    provider = Provider()
    with WarmPool(provider, PARAMS) as pool:
        pool.plan([instance("a")])
        until(lambda: len(provider.living) == 1)
        provider.living.clear()
        assert pool.open(instance("a")).id == "a-1"
        pool.plan([instance("a")])
        until(lambda: "a-2" in provider.living)
        provider.digest = "sha256:2"
        assert pool.open(instance("a")).id == "a-3" and "a-2" not in provider.living


def test_starts_are_capped():
    provider = Provider(take_s=0.1)
    with WarmPool(provider, SandboxParams(warm=2, starts=3)) as pool:
        threads = [threading.Thread(target=pool.open, args=(instance(f"i{n}"),)) for n in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(provider.opened) == 12 and provider.most <= 3


def test_a_start_that_hangs_does_not_hold_up_its_siblings():
    provider = Provider()
    provider.hang.clear()
    with WarmPool(provider, SandboxParams(warm=1, starts=1)) as pool:
        pool.starts.slow_s = 0.3
        pool.plan([instance("hangs")])
        until(lambda: provider.at_once == 1)
        began = time.monotonic()
        assert pool.open(instance("a")).id == "a-0"
        assert time.monotonic() - began < 25, "the other one hangs for 30"
        provider.hang.set()


def test_failures_pause_further_starts_longer_and_longer():
    starts = Starts(1)
    pauses = []
    for _ in range(4):
        with pytest.raises(SandboxError), starts.place():
            raise SandboxError("the engine failed")
        pauses.append(starts._not_before - time.monotonic())
        starts._not_before = 0.0
    assert pauses[3] > 2 * pauses[0] and max(pauses) < 5
    with starts.place() as granted:
        assert granted
    assert starts._failures == 0
    began = time.monotonic()
    with pytest.raises(SandboxError), starts.place():
        raise SandboxError("again")
    assert starts._not_before - began < 1.5
    with starts.place():
        assert time.monotonic() - began > 0.2


def test_a_failed_warm_start_is_left_to_its_user():
    provider = Provider()
    provider.broken = 1
    with WarmPool(provider, SandboxParams(warm=1, starts=1)) as pool:
        pool.plan([instance("a")])
        until(lambda: provider.broken == 0)
        assert pool.open(instance("a")).id == "a-0"


def test_real_sandboxes_come_fresh_and_soon(provider, tiny):
    with WarmPool(provider, provider.params) as pool:
        pool.plan([tiny.instance] * 3)
        until(lambda: sum(map(len, pool._ready.values())) == 2, 60)
        warm = {sandbox.id for ready in pool._ready.values() for _, sandbox in ready}
        with pool.open(tiny.instance) as one:
            assert one.id in warm
            one.exec("echo used > used; echo used > /tmp/used")
        with pool.open(tiny.instance) as two:
            assert two.id != one.id
            assert two.exec("ls used /tmp/used 2>/dev/null").output == "" and two.diff() == ""
