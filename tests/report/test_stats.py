"""Intervals and tests against closed forms and known values."""

import math
from statistics import NormalDist

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protege.report.stats import mcnemar_exact, paired_bootstrap, share_interval, sign_flip, wilson

counts = st.integers(0, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


@settings(deadline=None)
@given(counts, st.sampled_from([0.8, 0.95, 0.99]))
def test_wilson_equals_its_formula(kn, confidence):
    k, n = kn
    if n:
        z, p = NormalDist().inv_cdf((1 + confidence) / 2), k / n
        centre = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        assert wilson(k, n, confidence) == pytest.approx((centre - half, centre + half), abs=1e-9)


def test_wilson_of_the_papers_best_score():
    # 42.4% of 500 instances
    assert wilson(212, 500) == pytest.approx((0.3814, 0.4678), abs=1e-4)


def test_wilson_edges_and_nonsense():
    assert wilson(0, 0) == (0.0, 1.0)
    assert wilson(0, 10)[0] == 0.0 and wilson(10, 10)[1] == 1.0
    for k, n, confidence in [(3, 2, 0.95), (-1, 2, 0.95), (1, 2, 1.0)]:
        with pytest.raises(ValueError):
            wilson(k, n, confidence)


@settings(deadline=None)
@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_equals_its_formula(b, c):
    tail = sum(math.comb(b + c, i) for i in range(min(b, c) + 1))
    assert mcnemar_exact(b, c) == pytest.approx(min(1.0, 2 * tail / 2 ** (b + c)))
    assert mcnemar_exact(b, c) == mcnemar_exact(c, b)


def test_bootstrap_is_seeded_and_points_the_right_way():
    first = [True] * 20 + [False] * 80
    second = [True] * 50 + [False] * 50
    low, high = paired_bootstrap(first, second, seed=4)
    assert (low, high) == paired_bootstrap(first, second, seed=4)
    assert 0.2 < low < 0.3 < high < 0.4
    assert paired_bootstrap(second, first, seed=4)[1] < 0


def test_bootstrap_matches_resampling_the_pairs_themselves():
    import numpy as np

    rng = np.random.default_rng(1)
    first, second = rng.random(40) < 0.3, rng.random(40) < 0.5
    picks = rng.integers(0, 40, size=(20_000, 40))
    means = (second[picks].astype(float) - first[picks].astype(float)).mean(axis=1)
    expected = np.quantile(means, [0.025, 0.975])
    assert paired_bootstrap(first.tolist(), second.tolist(), samples=20_000) == pytest.approx(expected, abs=0.026)


def test_bootstrap_edges():
    assert paired_bootstrap([], []) == (-1.0, 1.0)
    assert paired_bootstrap([True] * 5, [True] * 5) == (0.0, 0.0)
    with pytest.raises(ValueError):
        paired_bootstrap([True], [])


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10), st.integers(0, 10), st.integers(0, 5))
def test_random_signs_of_single_outcomes_are_mcnemars_test(b, c, ties):
    differences = [-1.0] * b + [1.0] * c + [0.0] * ties
    assert sign_flip(differences) == pytest.approx(mcnemar_exact(b, c), abs=0.02)


def test_samples_of_one_instance_do_not_narrow_the_interval_as_instances_do():
    spread = [0.0, 1 / 3, 2 / 3, 1.0] * 6
    low, high = share_interval(spread)
    assert high - low > 0.25  # 72 independent rollouts would give 0.22
    assert share_interval([0.0] * 20) == wilson(0, 20) and share_interval([1 / 3] * 24) == wilson(8, 24)
    assert share_interval([0.0, 1.0] * 10) == wilson(10, 20)
    assert share_interval([]) == (0.0, 1.0)
