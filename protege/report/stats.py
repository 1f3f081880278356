"""Intervals and paired tests for proportions of small samples: scipy's, with the edges that it refuses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

EXACT_UP_TO = 14
"""Differences of which all 2**n signs are tried; beyond that they are sampled."""


def wilson(k: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of k successes in n trials (Wilson 1927); (0, 1) when n is 0.

    >>> low, high = wilson(4, 6)
    >>> round(low, 3), round(high, 3)
    (0.3, 0.903)
    """
    from scipy.stats import binomtest

    if not 0 < confidence < 1:
        raise ValueError(f"confidence = {confidence} is not between 0 and 1")
    if k == n == 0:
        return 0.0, 1.0
    interval = binomtest(k, n).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def mcnemar_exact(only_first: int, only_second: int) -> float:
    """Two-sided exact McNemar p-value from the two discordant counts; 1.0 when there are none.

    >>> mcnemar_exact(0, 6)
    0.03125
    """
    from scipy.stats import binomtest

    n = only_first + only_second
    return float(binomtest(only_first, n).pvalue) if n else 1.0


def bootstrap_mean(
    values: Sequence[float], confidence: float = 0.95, samples: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of the mean of ``values`` (one an instance), instances resampled.

    >>> low, high = bootstrap_mean([0.0, 1.0] * 50)
    >>> round(low, 1), round(high, 1)
    (0.4, 0.6)
    """
    import numpy as np
    from scipy.stats import bootstrap

    if not values:
        raise ValueError("no values to resample")
    if len(values) == 1:
        return float(values[0]), float(values[0])
    found = bootstrap(
        (np.asarray(values, dtype=float),),
        np.mean,
        n_resamples=samples,
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(found.low), float(found.high)


def share_interval(
    shares: Sequence[float], confidence: float = 0.95, samples: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Interval of the mean share of resolved rollouts, from one share an instance; (0, 1) without instances.

    Rollouts of one instance are not independent, so instances are resampled. Wilson's interval where a share is
    always 0 or 1 (one rollout an instance), and where all are equal, of which resampling makes an interval of width 0.
    """
    single = all(share in (0.0, 1.0) for share in shares)
    if not shares or single or len(set(shares)) == 1:
        return wilson(round(sum(shares)), len(shares), confidence)
    return bootstrap_mean(shares, confidence, samples, seed)


def crossed_bootstrap(
    table: Sequence[Sequence[float]], confidence: float = 0.95, samples: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of the mean of ``table``, one row a training and one column an instance, both resampled.

    So it holds what another training would change and what other instances would (Owen 2007, "The pigeonhole
    bootstrap", which scipy has not). Of one row only the columns are resampled; of two or three rows it is rough.

    >>> low, high = crossed_bootstrap([[0.0] * 40, [1.0] * 40])  # trainings that differ in everything
    >>> (low, high)
    (0.0, 1.0)
    """
    import numpy as np

    data = np.asarray(table, dtype=float)
    if data.ndim != 2 or not data.size:
        raise ValueError(f"a table of trainings by instances is needed, this one has shape {data.shape}")
    rng = np.random.default_rng(seed)
    # how often each row and each column was drawn; the mean of a resampled table is bilinear in them
    rows, columns = (rng.multinomial(n, [1 / n] * n, size=samples) for n in data.shape)
    means = np.einsum("sr,rc,sc->s", rows, data, columns, optimize=True) / data.size
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


def paired_bootstrap(
    first: Sequence[float], second: Sequence[float], confidence: float = 0.95, samples: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of mean(second) - mean(first), instances resampled in pairs; (-1, 1) without pairs.

    Where all pairs differ alike its width is 0, at any number of them: a decision rests on :func:`paired_score`.

    An outcome is an instance's share of resolved rollouts (0 or 1 where there is one).
    """
    differences = [b - a for a, b in zip(first, second, strict=True)]
    return bootstrap_mean(differences, confidence, samples, seed) if differences else (-1.0, 1.0)


def paired_score(first: Sequence[float], second: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Score interval of mean(second) - mean(first) over pairs; (-1, 1) without pairs. It has a width also where all agree.

    Newcombe 1998, "Improved confidence intervals for the difference between binomial proportions based on paired data",
    Statistics in Medicine 17:2635-2650, method 10: Wilson's intervals of both, joined by the correlation of the pairs,
    which is taken 1/2n smaller where it is positive. Written for outcomes of 0 and 1. With an instance's share of
    resolved rollouts the pair is still the unit; a share varies less than a single outcome, so that the interval is
    then too wide rather than too narrow.

    >>> low, high = paired_score([0.0, 0.0], [0.0, 0.0])
    >>> round(low, 2), round(high, 2)
    (-0.66, 0.66)
    """
    n = len(first)
    both = sum(a * b for a, b in zip(first, second, strict=True))
    return _paired_score(sum(first) / n, sum(second) / n, both / n, n, confidence) if n else (-1.0, 1.0)


def _paired_score(p: float, q: float, both: float, n: int, confidence: float) -> tuple[float, float]:
    """:func:`paired_score` from the two means and the mean of the pairs' products."""
    covariance = both - p * q
    if covariance > 0:
        covariance = max(covariance - 1 / (2 * n), 0.0)
    spread = math.sqrt(max(p * (1 - p) * q * (1 - q), 0.0))
    phi = max(-1.0, min(1.0, covariance / spread)) if spread > 1e-12 else 0.0
    (p_low, p_high), (q_low, q_high) = (_wilson(share, n, confidence) for share in (p, q))

    def joined(one: float, other: float) -> float:
        return math.sqrt(max(one * one - 2 * phi * one * other + other * other, 0.0))

    return q - p - joined(q - q_low, p_high - p), q - p + joined(q_high - q, p - p_low)


def _wilson(share: float, n: int, confidence: float) -> tuple[float, float]:
    """:func:`wilson` of a share that need not be a count over ``n``."""
    z2 = _z(confidence) ** 2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(max(share * (1 - share), 0.0) * z2 / n + (z2 / (2 * n)) ** 2) / (1 + z2 / n)
    return max(0.0, centre - half), min(1.0, centre + half)


@cache
def _z(confidence: float) -> float:
    from scipy.stats import norm

    return float(norm.ppf((1 + confidence) / 2))


def smallest_difference(n: int, confidence: float = 0.95, power: float = 0.8) -> float | None:
    """The true difference that :func:`paired_score` of ``n`` pairs tells from 0 with probability ``power``; None: none.

    In the best case: every discordant pair points the same way, and the agreeing ones are split as helps most. A
    smaller difference is seen less often, whatever the outcomes.

    >>> [round(smallest_difference(n) or 1.0, 2) for n in (10, 20, 100, 500)]
    [0.48, 0.26, 0.07, 0.01]
    """
    from scipy.stats import beta

    for k in range(1, n + 1):
        if any(_paired_score(a / n, (a + k) / n, a / n, n, confidence)[0] > 0 for a in range(n - k + 1)):
            # k or more of n binomial trials have probability ``power`` at this rate (Clopper and Pearson 1934)
            return float(beta.ppf(power, k, n - k + 1))
    return None


def sign_flip(differences: Sequence[float], samples: int = 10_000, seed: int = 0) -> float:
    """Two-sided p-value of the mean of paired ``differences`` under random signs (Fisher's randomisation test).

    With differences of -1, 0 and 1 it is McNemar's test.

    >>> sign_flip([1, 1, 1, 1, 1, 1, 0, 0]) == mcnemar_exact(0, 6)
    True
    """
    import numpy as np
    from scipy.stats import permutation_test

    data = np.asarray([d for d in differences if d], dtype=float)
    if len(data) < 2:
        return 1.0
    found = permutation_test(
        (data,),
        np.sum,
        permutation_type="samples",
        n_resamples=np.inf if len(data) <= EXACT_UP_TO else samples,
        rng=np.random.default_rng(seed),
    )
    return float(found.pvalue)
