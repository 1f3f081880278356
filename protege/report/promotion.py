"""Whether a night's model replaces the champion: a pure function of two measurements and their paired comparison."""

from __future__ import annotations

from dataclasses import dataclass

from protege.config import NightlyParams


@dataclass(frozen=True)
class Measured:
    """One model on the night's eval instances. ``n`` were graded, ``n_infra`` lost to infrastructure; shares are in [0, 1]."""

    digest: str
    n: int
    n_infra: int
    pass_at_1: float | None
    loop_share: float | None

    @property
    def infra_share(self) -> float:
        total = self.n + self.n_infra
        return self.n_infra / total if total else 1.0


@dataclass(frozen=True)
class Paired:
    """Candidate minus champion over the ``n`` instances that both have a verdict for."""

    n: int
    difference: float
    ci: tuple[float, float]
    p_value: float


@dataclass(frozen=True)
class Decision:
    """``reasons`` are sentences for people; with ``promote`` False each one alone would have been enough."""

    promote: bool
    reasons: tuple[str, ...]

    @property
    def headline(self) -> str:
        return "promoted" if self.promote else "champion kept"


def decide(candidate: Measured, champion: Measured | None, paired: Paired | None, p: NightlyParams) -> Decision:
    """Promote or keep, and why. ``champion`` and ``paired`` are None as long as there is no champion.

    >>> good = Measured("a", 40, 0, 0.5, 0.1)
    >>> decide(good, None, None, NightlyParams()).reasons
    ('there is no champion yet',)
    """
    if champion is not None and candidate.digest == champion.digest:
        return Decision(False, ("the new model is the champion, byte for byte",))
    against = _unfit("the new model", candidate, p)
    if champion is None:
        return Decision(False, against) if against else Decision(True, ("there is no champion yet",))
    against += _unmeasured("the champion", champion, p)
    if paired is None or paired.n == 0:
        against += ("no instance has a verdict for both models, so they cannot be compared",)
        return Decision(False, against)
    if paired.n < p.min_graded:
        against += (f"only {paired.n} instances have a verdict for both models; a decision needs {p.min_graded}",)
    low, high = paired.ci
    found = f"Pass@1 {paired.difference:+.3f} against the champion, interval [{low:+.3f}, {high:+.3f}], n = {paired.n}"
    if low <= -p.margin:
        against += (f"{found}: the lower bound is not above -{p.margin:g}, so it may be worse",)
    if against:
        return Decision(False, against)
    return Decision(True, (f"{found}: the lower bound is above -{p.margin:g}, so it is not worse",))


def _unfit(who: str, m: Measured, p: NightlyParams) -> tuple[str, ...]:
    found = _unmeasured(who, m, p)
    if m.loop_share is not None and m.loop_share > p.max_loop_share:
        found += (f"{who} loops in {m.loop_share:.0%} of its trajectories; at most {p.max_loop_share:.0%} are allowed",)
    return found


def _unmeasured(who: str, m: Measured, p: NightlyParams) -> tuple[str, ...]:
    if m.n == 0:
        return (f"{who} has no graded instance ({m.n_infra} were lost to infrastructure)",)
    if m.infra_share > p.max_infra_share:
        return (
            f"{who} lost {m.n_infra} of {m.n + m.n_infra} instances to infrastructure; at most "
            f"{p.max_infra_share:.0%} are allowed for a decision",
        )
    return ()
