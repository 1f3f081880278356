"""Intervals and paired tests for proportions of small samples: scipy's, with the edges that it refuses."""

from __future__ import annotations

from collections.abc import Sequence

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

    An outcome is an instance's share of resolved rollouts (0 or 1 where there is one).
    """
    differences = [b - a for a, b in zip(first, second, strict=True)]
    return bootstrap_mean(differences, confidence, samples, seed) if differences else (-1.0, 1.0)


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
