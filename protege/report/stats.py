"""Intervals and paired tests for proportions of small samples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist


def wilson(k: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of k successes in n trials (Wilson 1927); (0, 1) when n is 0.

    >>> low, high = wilson(4, 6)
    >>> round(low, 3), round(high, 3)
    (0.3, 0.903)
    """
    if not 0 <= k <= n:
        raise ValueError(f"k = {k} successes of n = {n} trials")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence = {confidence} is not between 0 and 1")
    if n == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    p, scale = k / n, 1 + z * z / n
    centre = (p + z * z / (2 * n)) / scale
    half = z / scale * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return (0.0 if k == 0 else max(0.0, centre - half)), (1.0 if k == n else min(1.0, centre + half))


def mcnemar_exact(only_first: int, only_second: int) -> float:
    """Two-sided exact McNemar p-value from the two discordant counts; 1.0 when there are none.

    >>> mcnemar_exact(0, 6)
    0.03125
    """
    if only_first < 0 or only_second < 0:
        raise ValueError("discordant counts cannot be negative")
    n = only_first + only_second
    tail = sum(math.comb(n, i) for i in range(min(only_first, only_second) + 1))
    return min(1.0, 2 * tail / 2**n)


def bootstrap_mean(
    values: Sequence[float], confidence: float = 0.95, samples: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of the mean of ``values`` (one an instance), instances resampled.

    >>> low, high = bootstrap_mean([0.0, 1.0] * 50)
    >>> round(low, 1), round(high, 1)
    (0.4, 0.6)
    """
    import numpy as np

    if not values:
        raise ValueError("no values to resample")
    data = np.asarray(values, dtype=float)
    rng = np.random.default_rng(seed)
    means = data[rng.integers(0, len(data), size=(samples, len(data)))].mean(axis=1)
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


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
    bootstrap"). Of one row only the columns are resampled; of two or three rows the interval is a rough one.

    >>> low, high = crossed_bootstrap([[0.0] * 40, [1.0] * 40])  # trainings that differ in everything
    >>> (low, high)
    (0.0, 1.0)
    """
    import numpy as np

    data = np.asarray(table, dtype=float)
    if data.ndim != 2 or not data.size:
        raise ValueError(f"a table of trainings by instances is needed, this one has shape {data.shape}")
    rng = np.random.default_rng(seed)
    rows, columns = data.shape
    # how often each row and each column was drawn; the mean of a resampled table is bilinear in them
    drawn = (
        rng.multinomial(rows, [1 / rows] * rows, size=samples),
        rng.multinomial(columns, [1 / columns] * columns, size=samples),
    )
    means = np.einsum("sr,rc,sc->s", drawn[0], data, drawn[1], optimize=True) / data.size
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


def paired_bootstrap(
    first: Sequence[float],
    second: Sequence[float],
    confidence: float = 0.95,
    samples: int = 10_000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile interval of mean(second) - mean(first), instances resampled in pairs; (-1, 1) without pairs.

    An outcome is an instance's share of resolved rollouts (0 or 1 where there is one).
    """
    if len(first) != len(second):
        raise ValueError(f"{len(first)} and {len(second)} outcomes are not pairs")
    if not first:
        return -1.0, 1.0
    return bootstrap_mean([b - a for a, b in zip(first, second, strict=True)], confidence, samples, seed)


def sign_flip(differences: Sequence[float], samples: int = 10_000, seed: int = 0) -> float:
    """Two-sided p-value of the mean of paired ``differences`` under random signs (Fisher's randomisation test).

    With differences of -1, 0 and 1 it is McNemar's test. Exact up to 14 differences that are not 0, else sampled.

    >>> sign_flip([1, 1, 1, 1, 1, 1, 0, 0]) == mcnemar_exact(0, 6)
    True
    """
    import numpy as np

    data = np.asarray([d for d in differences if d], dtype=float)
    if not len(data):
        return 1.0
    if len(data) <= 14:
        signs = 1 - 2 * ((np.arange(2 ** len(data))[:, None] >> np.arange(len(data))) & 1)
        extreme = np.abs(signs @ data) >= abs(data.sum()) - 1e-9
        return float(extreme.mean())
    signs = np.random.default_rng(seed).choice((-1, 1), size=(samples, len(data)))
    extreme = np.abs(signs @ data) >= abs(data.sum()) - 1e-9
    return float((extreme.sum() + 1) / (samples + 1))
