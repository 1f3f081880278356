"""What calls to an API have cost, and the hard budget over it. Safe between threads and between processes.

Two append-only files hold everything, and every sum is recomputed from them: ``intents.jsonl`` gets a line before
a call (its worst case), ``calls.jsonl`` a line after it (what it really came to). An intent without its call is
counted at its worst case: it is under way, or its process was killed and the endpoint may have charged for it.
So the sum never passes a budget, whatever runs at once and whenever something is killed.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
import uuid
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from protege.config import ApiParams
from protege.errors import BudgetExhausted

FOLDER = Path(".cache/protege/expert")
CALLS, INTENTS = "calls.jsonl", "intents.jsonl"
PICO = 10**12
"""Money is counted in whole pico-dollars, so that sums are exact and a limit is met to the last token."""


@dataclass(frozen=True)
class Amount:
    """Tokens (prompt and completion together) and money (in pico-dollars)."""

    tokens: int = 0
    pico: int = 0

    def __add__(self, other: Amount) -> Amount:
        return Amount(self.tokens + other.tokens, self.pico + other.pico)

    @property
    def usd(self) -> float:
        return self.pico / PICO


@dataclass(frozen=True)
class Reservation:
    """A call that may be made; ``worst`` is held for it until it is settled."""

    id: str
    instance: str
    worst: Amount


class Ledger:
    """The spending of one run.

    Args:
        params: the budgets, and the name of the run.
        folder: where the runs' folders are; None keeps everything in memory (a library user's own counting).
    """

    def __init__(self, params: ApiParams, folder: Path | str | None = FOLDER) -> None:
        self.params = params
        self.folder = Path(folder).absolute() / params.run if folder is not None else None
        self._lock = threading.Lock()
        self._read = {CALLS: 0, INTENTS: 0}
        self._open: dict[str, tuple[str, Amount]] = {}
        self._total = Amount()
        self._by_instance: dict[str, Amount] = defaultdict(Amount)

    def reserve(self, instance: str, worst: Amount, what: str = "call") -> Reservation:
        """Hold ``worst`` for a call on behalf of ``instance``.

        Raises:
            BudgetExhausted: it could pass a budget; nothing is held and the call must not be made.
        """
        reservation = Reservation(uuid.uuid4().hex, instance, worst)
        with self._exclusive():
            self._check(instance, worst, what)
            self._append(
                INTENTS,
                {"id": reservation.id, "instance": instance, "tokens": worst.tokens, "cost_usd": worst.usd},
            )
        return reservation

    def settle(self, reservation: Reservation, line: dict[str, Any]) -> None:
        """Replace a reservation by what the call came to: ``prompt_tokens``, ``completion_tokens`` and ``cost_usd`` of
        ``line``, which goes to calls.jsonl with the time, the id and the instance."""
        head = {"id": reservation.id, "time": datetime.now(UTC).isoformat(timespec="milliseconds")}
        with self._exclusive():
            self._append(CALLS, {**head, **line, "instance": reservation.instance})

    def spent(self, instance: str | None = None) -> Amount:
        """What has been spent, and what is held for calls under way, by the run or for one instance."""
        with self._exclusive():
            return self._committed(instance)

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        with self._lock:
            if self.folder is None:
                yield
                return
            self.folder.mkdir(parents=True, exist_ok=True)
            with (self.folder / "lock").open("a") as handle:
                fcntl.flock(handle, fcntl.LOCK_EX)
                self._refresh()
                yield

    def _committed(self, instance: str | None) -> Amount:
        held = [amount for owner, amount in self._open.values() if instance in (None, owner)]
        return sum(held, self._total if instance is None else self._by_instance[instance])

    def _check(self, instance: str, worst: Amount, what: str) -> None:
        p = self.params
        for owner, usd, tokens, field in (
            (None, p.budget_usd, p.budget_tokens, "budget"),
            (instance, p.instance_usd, p.instance_tokens, "instance"),
        ):
            so_far = self._committed(owner)
            then = so_far + worst
            whose = f"run {p.run!r}" if owner is None else f"instance {owner}"
            advice = "raise it in params.yaml, or give api.run another name to count from 0"
            wrong = ""
            if usd is not None and then.pico > round(usd * PICO):
                wrong = (
                    f"api.{field}_usd = {usd:g} of {whose} has {so_far.usd:.6f} USD committed, and this {what} could "
                )
                wrong += f"cost {worst.usd:.6f} more"
            elif tokens is not None and then.tokens > tokens:
                wrong = (
                    f"api.{field}_tokens = {tokens:g} of {whose} has {so_far.tokens} tokens committed, and this {what} "
                )
                wrong += f"could take {worst.tokens} more"
            if wrong:
                error = BudgetExhausted(f"the budget {wrong}, so it was not made; {advice}")
                if owner is None:
                    error.boundary = "input"
                raise error

    def _append(self, name: str, line: dict[str, Any]) -> None:
        if self.folder is None:
            self._apply(name, line)
            return
        path = self.folder / name
        with path.open("ab+") as handle:
            # A writer that was killed may have left half a line; it must not swallow ours.
            torn = handle.tell() > 0 and os.pread(handle.fileno(), 1, handle.tell() - 1) != b"\n"
            handle.write(b"\n" * torn + json.dumps(line, ensure_ascii=False).encode("utf-8", "replace") + b"\n")
        self._refresh()

    def _refresh(self) -> None:
        assert self.folder is not None
        for name in (INTENTS, CALLS):  # an intent always stands before its call
            path = self.folder / name
            if not path.exists():
                continue
            with path.open("rb") as handle:
                handle.seek(self._read[name])
                fresh = handle.read()
            whole = fresh[: fresh.rfind(b"\n") + 1]
            self._read[name] += len(whole)
            for raw in whole.splitlines():
                try:
                    line = json.loads(raw)
                except ValueError:
                    continue
                self._apply(name, line)

    def _apply(self, name: str, line: dict[str, Any]) -> None:
        instance, pico = str(line["instance"]), round(line["cost_usd"] * PICO)
        if name == INTENTS:
            self._open[line["id"]] = (instance, Amount(line["tokens"], pico))
            return
        self._open.pop(line["id"], None)
        amount = Amount(line["prompt_tokens"] + line["completion_tokens"], pico)
        self._total += amount
        self._by_instance[instance] += amount
