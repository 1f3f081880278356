"""Intervals and tests against closed forms and known values."""

import math
from statistics import NormalDist

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protege.report.stats import (
    mcnemar_exact,
    paired_bootstrap,
    paired_score,
    share_interval,
    sign_flip,
    smallest_difference,
    wilson,
)

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


def table(both: int, only_first: int, only_second: int, neither: int) -> tuple[list[float], list[float]]:
    counts = {(1.0, 1.0): both, (1.0, 0.0): only_first, (0.0, 1.0): only_second, (0.0, 0.0): neither}
    pairs = [pair for pair, count in counts.items() for _ in range(count)]
    return [a for a, _ in pairs], [b for _, b in pairs]


@pytest.mark.parametrize(
    ("counts", "expected", "digits"),
    [
        # thallium stress tests: Altman and others, Statistics with Confidence (2000), p. 52
        ((14, 0, 5, 22), (0.011, 0.226), 3),
        # Fagerland, Lydersen, Laake, Statistical Analysis of Contingency Tables (2017), chapter 8: Cavo 2012, Bentur 2009
        ((59, 16, 6, 80), (-0.1186, -0.0046), 4),
        ((1, 7, 1, 12), (-0.507, -0.026), 3),
    ],
)
def test_the_paired_interval_is_that_of_published_examples(counts, expected, digits):
    first, second = table(*counts)
    assert tuple(round(end, digits) for end in paired_score(first, second)) == expected
    assert paired_score(second, first) == pytest.approx([-expected[1], -expected[0]], abs=6e-4)


def test_the_paired_interval_of_ties_has_a_width_that_shrinks_with_their_number():
    low, high = paired_score([0.0] * 2, [0.0] * 2)
    assert low == pytest.approx(-0.658, abs=1e-3) and high == -low
    assert [paired_score([0.0] * n, [0.0] * n)[0] for n in (10, 80)] == pytest.approx([-0.278, -0.046], abs=1e-3)
    assert paired_score([1.0] * 3, [1.0] * 3)[0] < -0.5
    assert paired_score([], []) == (-1.0, 1.0)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=30))
def test_the_paired_interval_of_shares_is_in_range_around_the_difference_and_never_of_width_zero(pairs):
    first, second = [a / 4 for a, _ in pairs], [b / 4 for _, b in pairs]
    low, high = paired_score(first, second)
    difference = sum(second) / len(pairs) - sum(first) / len(pairs)
    assert -1.0 - 1e-9 <= low <= difference + 1e-9 and difference - 1e-9 <= high <= 1.0 + 1e-9
    assert high - low > 1e-3


def test_the_smallest_difference_is_found_as_often_as_is_said():
    import numpy as np

    least = smallest_difference(20)
    assert least is not None
    better = np.random.default_rng(5).binomial(20, least, size=2_000)
    found = [any(paired_score(*table(a, 0, k, 20 - k - a))[0] > 0 for a in range(21 - k)) for k in range(21)]
    assert np.mean([found[k] for k in better]) == pytest.approx(0.8, abs=0.03)
    assert smallest_difference(1) is None
    falling = [smallest_difference(n) or 1.0 for n in (1, 2, 10, 40, 200)]
    assert falling == sorted(falling, reverse=True)


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
