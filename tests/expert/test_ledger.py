"""The budget is never passed: by any order of calls, threads, processes, or kills."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protege.errors import BudgetExhausted
from protege.expert.ledger import PICO, Amount, Ledger
from tests.expert.conftest import quick
from tests.expert.endpoint import body, says

INSTANCES = ("a", "b")


def line(amount: Amount) -> dict:
    return {"prompt_tokens": amount.tokens, "completion_tokens": 0, "cost_usd": amount.usd, "outcome": "ok"}


step = st.one_of(
    st.tuples(
        st.just("reserve"), st.integers(0, 1), st.sampled_from(INSTANCES), st.integers(0, 60), st.integers(0, 60)
    ),
    st.tuples(st.just("settle"), st.integers(0, 20), st.floats(0, 1)),
    st.tuples(st.just("restart"), st.integers(0, 1)),
)


@settings(max_examples=60)
@given(
    st.lists(step, max_size=30),
    st.sampled_from([None, 100]),
    st.sampled_from([None, 120e-12]),
    st.sampled_from([None, 70]),
    st.sampled_from([None, 50e-12]),
)
def test_no_order_of_reserving_settling_and_restarting_passes_a_budget(steps, tokens, usd, own_tokens, own_usd):
    params = quick(budget_tokens=tokens, budget_usd=usd, instance_tokens=own_tokens, instance_usd=own_usd)
    limits = [(None, tokens, usd), *((name, own_tokens, own_usd) for name in INSTANCES)]
    with tempfile.TemporaryDirectory() as folder:
        processes = [Ledger(params, folder), Ledger(params, folder)]
        held: list = []  # (reservation, what it came to so far: the model to compare with)
        done: list[tuple[str, Amount]] = []

        def committed(owner):
            everything = [(r.instance, r.worst) for r in held] + done
            return sum((amount for name, amount in everything if owner in (None, name)), Amount())

        for action in steps:
            if action[0] == "reserve":
                _, who, name, size, cost = action
                worst = Amount(size, cost)
                fits = all(
                    (most is None or (committed(owner) + worst).tokens <= most)
                    and (money is None or (committed(owner) + worst).pico <= round(money * PICO))
                    for owner, most, money in limits
                    if owner in (None, name)
                )
                if fits:
                    held.append(processes[who].reserve(name, worst))
                else:
                    with pytest.raises(BudgetExhausted):
                        processes[who].reserve(name, worst)
            elif action[0] == "settle" and held:
                reservation = held.pop(action[1] % len(held))
                real = Amount(int(reservation.worst.tokens * action[2]), int(reservation.worst.pico * action[2]))
                processes[action[1] % 2].settle(reservation, line(real))
                done.append((reservation.instance, real))
            elif action[0] == "restart":  # what it had under way stays held
                processes[action[1]] = Ledger(params, folder)
            for owner, most, money in limits:
                spent = processes[0].spent(owner)
                assert spent == committed(owner) == processes[1].spent(owner)
                assert most is None or spent.tokens <= most
                assert money is None or spent.pico <= round(money * PICO)


class Hesitant(Ledger):
    """Lets every other thread run between the check of a reservation and its making."""

    def _check(self, *args):
        super()._check(*args)
        time.sleep(0.0005)


@settings(max_examples=8)
@given(st.integers(2, 12), st.integers(0, 2000), st.integers(0, 2**32))
def test_threads_never_pass_a_budget_and_use_it_up(threads, budget, seed):
    ledger = Hesitant(quick(budget_tokens=budget, budget_usd=None), None)
    most, under_way, lock = [0], [0], threading.Lock()

    def work(index: int) -> None:
        rng = random.Random(seed + index)
        for _ in range(40):
            worst = Amount(rng.randint(1, 40))
            try:
                reservation = ledger.reserve("i", worst)
            except BudgetExhausted:
                continue
            real = Amount(rng.randint(0, worst.tokens))
            with lock:
                under_way[0] += worst.tokens
                most[0] = max(most[0], under_way[0])
            time.sleep(0)
            with lock:  # before it is settled: what is measured here is never more than what is really committed
                under_way[0] -= worst.tokens - real.tokens
            ledger.settle(reservation, line(real))

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, range(threads)))
    assert most[0] <= budget and ledger.spent().tokens <= budget
    left = budget - ledger.spent().tokens
    with pytest.raises(BudgetExhausted):
        ledger.reserve("i", Amount(left + 1))
    ledger.reserve("i", Amount(left))  # what was held and not used is there again


def test_concurrent_callers_of_a_real_endpoint(client, endpoint):
    """By the endpoint's own count, what it was asked for stays within the budget, and most of it is used."""
    endpoint.plays(says(body("x", {"prompt_tokens": 100, "completion_tokens": 50})))
    budget = 20 * (100 + 500) / 1e6 + 700e-6
    clients = [client(role, budget_usd=budget) for role in ("expert", "judge", "teacher")]
    made, refused = [], []

    def ask(index: int) -> None:
        try:
            made.append(
                clients[index % 3].complete([{"role": "user", "content": "q"}], instance=f"i{index}", max_tokens=50)
            )
        except BudgetExhausted:
            refused.append(index)

    with ThreadPoolExecutor(12) as pool:
        list(pool.map(ask, range(60)))
    assert len(endpoint.requests) == len(made) and len(made) + len(refused) == 60 and refused
    assert sum(a.cost_usd for a in made) == pytest.approx(len(made) * 600e-6)
    assert 19 <= len(made) <= 21
    log = [json.loads(x) for x in (clients[0].ledger.folder / "calls.jsonl").read_text().splitlines()]
    assert {x["role"] for x in log} == {"expert", "judge", "teacher"} and len(log) == len(made)


def test_an_instance_has_a_budget_of_its_own(client, endpoint):
    one = client(instance_tokens=300)
    ask = {"messages": [{"role": "user", "content": "q"}], "max_tokens": 100}
    one.complete(**ask, instance="a")
    one.complete(**ask, instance="a")
    endpoint.plays(says(body("x", {"prompt_tokens": 50, "completion_tokens": 100})))
    one.complete(**ask, instance="a")
    with pytest.raises(BudgetExhausted, match="instance a .*200 tokens committed") as caught:
        one.complete(**ask, instance="a")
    assert caught.value.boundary == "expert"  # masks this instance's work only
    assert one.complete(**ask, instance="b").text == "x"


PROGRAM = """
import sys, time
from protege.expert.ledger import Amount, Ledger
from tests.expert.conftest import quick
ledger = Ledger(quick(budget_tokens=1000), sys.argv[1])
done = ledger.reserve("i", Amount(300))
ledger.settle(done, {"prompt_tokens": 100, "completion_tokens": 20, "cost_usd": 0.0})
ledger.reserve("i", Amount(400))
print("ready", flush=True)
time.sleep(60)
"""


def test_a_killed_process_goes_on_counting_when_it_is_restarted(tmp_path):
    root = Path(__file__).parents[2]
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(tmp_path)], stdout=subprocess.PIPE, text=True, cwd=root
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    again = Ledger(quick(budget_tokens=1000), tmp_path)
    assert again.spent().tokens == 120 + 400
    with pytest.raises(BudgetExhausted, match="520 tokens committed") as caught:
        again.reserve("i", Amount(481))
    assert caught.value.boundary == "input"  # stops the stage: nothing more can be done before somebody raises it
    again.reserve("i", Amount(480))
    assert Ledger(quick(run="next"), tmp_path).spent() == Amount()


def test_a_torn_line_is_neither_counted_nor_swallows_the_next(tmp_path):
    first = Ledger(quick(), tmp_path)
    first.settle(first.reserve("i", Amount(10)), line(Amount(4)))
    held = first.reserve("i", Amount(7))
    for name in ("calls.jsonl", "intents.jsonl"):
        with (tmp_path / "default" / name).open("a") as handle:
            handle.write('{"id": "x", "tok')
    second = Ledger(quick(), tmp_path)
    assert second.spent().tokens == 4 + 7
    second.settle(held, line(Amount(6)))
    second.reserve("i", Amount(3))
    assert first.spent().tokens == second.spent().tokens == Ledger(quick(), tmp_path).spent().tokens == 4 + 6 + 3


def test_processes_at_once_never_pass_a_budget(tmp_path):
    """Each worker has a ledger of its own on the same files, as processes have; flock is all that holds them apart."""
    params = quick(budget_tokens=100, budget_usd=None)
    made = []

    def work(_: int) -> None:
        ledger = Hesitant(params, tmp_path)
        for _ in range(5):
            try:
                ledger.reserve("i", Amount(9))
            except BudgetExhausted:
                continue
            made.append(9)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(6)))
    assert sum(made) == Ledger(params, tmp_path).spent().tokens == 99


def test_sums_are_exact():
    ledger = Ledger(quick(budget_usd=0.3), None)
    for _ in range(3):
        ledger.settle(ledger.reserve("i", Amount(1, PICO // 10)), line(Amount(1, PICO // 10)))
    assert ledger.spent().usd == 0.3
    with pytest.raises(BudgetExhausted, match="budget_usd = 0.3"):
        ledger.reserve("i", Amount(1, 1))


def test_what_a_call_really_cost_is_counted_even_above_its_worst_case(client, endpoint):
    """Nobody can stop a bill that is larger than what was asked for; it is counted, and nothing new is begun."""
    endpoint.plays(says(body("x", {"prompt_tokens": 10**9, "completion_tokens": 10})))
    one = client(budget_tokens=10_000)
    ask = {"messages": [{"role": "user", "content": "q"}], "max_tokens": 100, "instance": "i"}
    one.complete(**ask)
    with pytest.raises(BudgetExhausted):
        one.complete(**ask)
