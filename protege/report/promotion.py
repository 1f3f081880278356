"""Whether a night's model replaces the champion: a pure function of two measurements and their paired comparison."""

from __future__ import annotations

from dataclasses import dataclass

from protege.config import NightlyParams
from protege.report.stats import smallest_difference


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
    """Candidate minus what it has to beat, over the ``n`` instances that both have a verdict for.

    ``ci`` is a score interval of ``confidence``: the bootstrap's has no width where the two agree everywhere.
    """

    n: int
    difference: float
    ci: tuple[float, float]
    p_value: float
    confidence: float = 0.95


@dataclass(frozen=True)
class Decision:
    """``reasons`` are sentences for people; with ``promote`` False each one alone would have been enough."""

    promote: bool
    reasons: tuple[str, ...]

    @property
    def headline(self) -> str:
        return "promoted" if self.promote else "not promoted"


CHAMPION, BASE = "the champion", "the base model"


def decide(
    candidate: Measured, rival: Measured | None, paired: Paired | None, p: NightlyParams, against: str = CHAMPION
) -> Decision:
    """Promote or keep, and why. ``rival`` is what has to be beaten, ``against`` its name.

    As long as there is no champion it is the base model; ``rival`` and ``paired`` are None where that was not evaluated.

    >>> good = Measured("a", 40, 0, 0.5, 0.1)
    >>> decide(good, None, None, NightlyParams()).reasons
    ('there is no champion yet, and the base model was not evaluated',)
    """
    if rival is not None and candidate.digest == rival.digest:
        return Decision(False, (f"the new model is {against}, byte for byte",))
    contra = _unfit("the new model", candidate, p)
    if rival is None:
        if 0 < candidate.n < p.min_graded:
            contra += (f"only {candidate.n} instances have a verdict; {_needed(p)}",)
        return Decision(not contra, contra or (f"there is no champion yet, and {BASE} was not evaluated",))
    contra += _unmeasured(against, rival, p)
    if paired is None or paired.n == 0:
        contra += ("no instance has a verdict for both models, so they cannot be compared",)
        return Decision(False, contra)
    if paired.n < p.min_graded:
        contra += (f"only {paired.n} instances have a verdict for both models; {_needed(p, paired.confidence)}",)
    low, high = paired.ci
    found = (
        f"Pass@1 {paired.difference:+.3f} against {against}, interval [{low:+.3f}, {high:+.3f}], n = {paired.n}"
        f" ({power(paired.n, paired.confidence)})"
    )
    if low <= -p.margin:
        contra += (f"{found}: the lower bound is not above -{p.margin:g}, so it may be worse",)
    if contra:
        return Decision(False, contra)
    first = "there is no champion yet; " if against == BASE else ""
    return Decision(True, (f"{first}{found}: the lower bound is above -{p.margin:g}, so it is not worse",))


def power(n: int, confidence: float = 0.95) -> str:
    """What ``n`` instances can show, in words: the difference that is found with a power of 0.8.

    >>> power(20)
    'with n = 20 only differences above 26 points show'
    """
    least = smallest_difference(n, confidence)
    if least is None:
        return f"with n = {n} no difference shows"
    return f"with n = {n} only differences above {least * 100:.0f} points show"


def _needed(p: NightlyParams, confidence: float = 0.95) -> str:
    return f"a decision needs {p.min_graded} ({power(p.min_graded, confidence)})"


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
