"""Bootstrap intervals against closed forms, another tool, and a simulation of their coverage."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from medplat.metrics import bootstrap


@pytest.mark.parametrize(("n", "k"), [(10, 5), (30, 9), (12, 6)])
def test_proportion_has_binomial_percentiles(n, k):
    """Resampling n patients with k ones draws Binomial(n, k / n): its quantiles are known."""
    values = [1.0] * k + [0.0] * (n - k)
    found = bootstrap.mean(values, range(n), replicates=10_000)
    assert found.low == pytest.approx(stats.binom.ppf(0.025, n, k / n) / n)
    assert found.high == pytest.approx(stats.binom.ppf(0.975, n, k / n) / n)
    assert (found.value, found.n, found.patients) == (k / n, n, n)


def test_every_resample_of_three_patients():
    """The 27 possible means of three patients, one of them with two cases, by enumeration."""
    cases = {"a": [1.0, 2.0], "b": [10.0], "c": [4.0]}
    means = [
        np.mean(np.concatenate([cases[patient] for patient in chosen]))
        for chosen in itertools.product(cases, repeat=3)
    ]
    found = bootstrap.mean([1, 2, 10, 4], list("aabc"), replicates=10_000, level=0.6)
    assert found.low in means
    assert np.mean(np.array(means) < found.low) <= 0.2 <= np.mean(np.array(means) <= found.low)
    assert np.mean(np.array(means) < found.high) <= 0.8 <= np.mean(np.array(means) <= found.high)
    assert found.value == 17 / 4


def test_spread_of_the_mean():
    """Many patients of one case: normal with the plug-in standard error."""
    values = np.random.default_rng(1).normal(size=400)
    found = bootstrap.mean(values, range(400), replicates=4000)
    wanted = 2 * 1.96 * values.std() / math.sqrt(400)
    assert found.high - found.low == pytest.approx(wanted, rel=0.05)


def test_copies_of_a_patients_case_change_nothing():
    values = np.random.default_rng(2).normal(size=12)
    once = bootstrap.mean(values, range(12))
    copied = bootstrap.mean(np.repeat(values, 7), np.repeat(np.arange(12), 7).tolist())
    assert (copied.low, copied.high) == pytest.approx((once.low, once.high))
    naive = bootstrap.mean(np.repeat(values, 7), range(84))
    assert naive.high - naive.low < 0.5 * (copied.high - copied.low)


def test_undefined_values_do_not_count():
    found = bootstrap.mean([0.5, float("nan"), 0.7, 0.9], list("aabc"))
    assert (found.n, found.patients) == (3, 3)
    assert found.value == pytest.approx(0.7)
    assert 0.5 <= found.low <= found.high <= 0.9


@pytest.mark.parametrize("values", [[], [float("nan")], [0.3], [0.3, 0.4]])
def test_fewer_than_two_patients_have_no_interval(values):
    found = bootstrap.mean(values, ["a"] * len(values))
    assert math.isnan(found.low)
    assert math.isnan(found.high)
    assert found.replicates == 0


def test_paired_difference_is_the_mean_of_differences():
    generator = np.random.default_rng(3)
    first = generator.normal(size=30)
    second = first + 0.1 + 0.01 * generator.normal(size=30)
    second[4] = float("nan")
    patients = (np.arange(30) // 2).tolist()
    found = bootstrap.paired(first, second, patients)
    kept = np.delete(np.arange(30), 4)
    assert found.value == pytest.approx((second - first)[kept].mean())
    assert 0.09 < found.low < found.value < found.high < 0.11
    back = bootstrap.paired(second, first, patients)
    assert (back.low, back.high) == pytest.approx((-found.high, -found.low))


def test_same_seed_same_interval_whatever_else_is_asked():
    values = np.random.default_rng(4).normal(size=20)

    def both(chosen):
        return {"median": float(np.median(values[chosen])), "max": float(values[chosen].max())}

    found = bootstrap.intervals(both, range(20), replicates=300)
    alone = bootstrap.intervals(
        lambda chosen: {"max": both(chosen)["max"]}, range(20), replicates=300
    )
    assert found["max"] == alone["max"]
    other = bootstrap.intervals(both, range(20), replicates=300, seed=1)
    assert other["median"] != found["median"]


def auc(target, score):
    def of(chosen):
        if len(set(target[chosen])) < 2:
            return {"auc": float("nan")}
        ill, well = score[chosen][target[chosen] == 1], score[chosen][target[chosen] == 0]
        return {"auc": float((ill[:, None] > well).mean())}

    return of


def test_one_class_only_is_drawn_again_and_counted():
    target = np.array([1, 0, 0, 0, 0, 0])
    score = np.array([0.8, 0.9, 0.1, 0.2, 0.3, 0.4])
    found = bootstrap.intervals(auc(target, score), range(6), replicates=300)["auc"]
    assert found.replicates == 300
    # No positive in (5/6)^6 = 0.335 of the draws, nothing but positives in nearly none.
    assert found.redrawn / (found.redrawn + 300) == pytest.approx(0.335, abs=0.08)
    strata = bootstrap.intervals(
        auc(target, score), range(6), strata=target.tolist(), replicates=100
    )["auc"]
    assert strata.redrawn == 0
    assert 0.0 <= strata.low <= strata.high == 1.0


def test_a_number_that_is_hardly_ever_defined_is_given_up():
    def rare(chosen):
        return {"rare": 1.0 if len(set(chosen.tolist())) == 8 else float("nan"), "mean": 0.0}

    found = bootstrap.intervals(rare, range(8), replicates=100)
    assert found["rare"].value == 1.0
    assert math.isnan(found["rare"].low)
    assert found["mean"].replicates == 100


def test_bca_equals_scipy():
    values = np.random.default_rng(5).exponential(size=40)
    ours = bootstrap.mean(values, range(40), replicates=8000, method="bca")
    theirs = stats.bootstrap(
        (values,), np.mean, n_resamples=8000, method="BCa", rng=np.random.default_rng(0)
    ).confidence_interval
    width = theirs.high - theirs.low
    assert ours.low == pytest.approx(theirs.low, abs=0.05 * width)
    assert ours.high == pytest.approx(theirs.high, abs=0.05 * width)
    plain = bootstrap.mean(values, range(40), replicates=8000)
    assert ours.low > plain.low
    assert ours.high > plain.high


def test_lengths_must_agree():
    with pytest.raises(ValueError, match="3 and 2"):
        bootstrap.mean([1.0, 2.0, 3.0], ["a", "b"])


@pytest.mark.slow
def test_coverage_with_strongly_clustered_cases():
    """500 studies of 150 patients with 1 to 8 similar cases each; the true mean is 0."""
    generator = np.random.default_rng(6)
    covered = naive_covered = 0
    for study in range(500):
        sizes = generator.integers(1, 9, size=150)
        patients = np.repeat(np.arange(150), sizes)
        values = generator.normal(size=150)[patients] + 0.3 * generator.normal(size=len(patients))
        ours = bootstrap.mean(values, patients.tolist(), replicates=600, seed=study)
        naive = bootstrap.mean(values, range(len(values)), replicates=200, seed=study)
        covered += ours.low <= 0 <= ours.high
        naive_covered += naive.low <= 0 <= naive.high
    assert 0.93 <= covered / 500 <= 0.97
    assert naive_covered / 500 < 0.75
