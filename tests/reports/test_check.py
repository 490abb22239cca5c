"""Numbers made here against committed ones: tests by scipy and by simulation."""

import numpy as np
import pytest
from scipy import stats

from experiments.reports.study import Column
from experiments.tables.check import LEVEL, compare, decide, is_time, print_check

NLL = Column("classification/nll", "NLL", "", "lower", 3)
RNG = np.random.default_rng(0)


def by_seed(values):
    return dict(enumerate(values))


def test_equal_seeds_are_paired():
    a = RNG.normal(size=6)
    b = a + 0.3 + 0.1 * RNG.normal(size=6)
    found = compare("row", NLL, by_seed(a), by_seed(b))
    expected = stats.ttest_rel(a, b)
    assert found.p == pytest.approx(expected.pvalue)
    assert found.errors == pytest.approx(abs(expected.statistic))
    # A part of the seeds is paired with the same ones.
    assert compare("row", NLL, by_seed(a[:4]), by_seed(b)).p == pytest.approx(
        stats.ttest_rel(a[:4], b[:4]).pvalue
    )


@pytest.mark.parametrize("seeds", [[7, 8, 9, 10], [0, 1], [2], [0, 1, 2, 9]])
def test_other_seeds_and_few_seeds_are_two_samples(seeds):
    here, committed = RNG.normal(size=len(seeds)), RNG.normal(size=5)
    found = compare("row", NLL, dict(zip(seeds, here, strict=True)), by_seed(committed))
    both = np.concatenate([here - here.mean(), committed - committed.mean()])
    spread = np.sqrt((both**2).sum() / (len(both) - 2) * (1 / len(seeds) + 1 / 5))
    t = abs(here.mean() - committed.mean()) / spread
    assert found.errors == pytest.approx(t)
    assert found.p == pytest.approx(2 * stats.t.sf(t, len(both) - 2))
    if len(seeds) > 1:
        assert found.p == pytest.approx(stats.ttest_ind(here, committed).pvalue)


def test_the_rule_is_holms():
    p = [0.009, 0.0001, 0.5, 0.0033, 0.0025]
    c = compare("row", NLL, by_seed([1.0, 2.0, 3.0]), by_seed([1.1, 2.3, 3.0]))
    found = [c._replace(p=value, off=1.0, error=0.1) for value in p]
    # .0001 <= .01 / 5, .0025 <= .01 / 4, .0033 <= .01 / 3, and .009 > .01 / 2 ends the rule.
    assert [c.differs for c in decide(found, 0.01)] == [False, True, False, True, True]
    within = [c._replace(off=0.09) for c in found]
    assert not any(c.differs for c in decide(within, 0.01))


def test_false_alarms_are_as_rare_as_promised():
    """Of tables whose numbers are drawn alike; and a shift of six standard deviations is seen."""
    alarms = seen = 0
    for _ in range(100):
        draws = RNG.normal(size=(10, 2, 5))
        found = decide([compare("row", NLL, by_seed(a), by_seed(b)) for a, b in draws])
        alarms += any(c.differs for c in found)
        draws[3, 0] += 6
        others = [
            compare("row", NLL, dict(zip(range(5, 10), a, strict=True)), by_seed(b))
            for a, b in draws
        ]
        seen += decide(others)[3].differs
    assert alarms <= stats.binom.ppf(0.999, 100, LEVEL)
    assert seen > 90


def test_rounding_is_no_difference_and_the_same_numbers_are_none():
    values = RNG.normal(size=5)
    same = decide([compare("row", NLL, by_seed(values), by_seed(values))])
    rounded = decide([compare("row", NLL, by_seed(values + 1e-7), by_seed(values))])
    assert rounded[0].errors > 100 and not rounded[0].differs
    assert same[0].errors == 0 and not same[0].differs


@pytest.mark.parametrize(
    ("here", "committed", "reason"),
    [
        ([100], [100, 100, 100], ""),
        ([100.0001], [100, 100, 100], ""),  # reads the same
        ([101], [100, 100, 100], "it does not depend on the seed"),
        ([100, 100], [101], "it does not depend on the seed"),
        ([], [1.0, 2.0], "no finite number here"),
        ([float("nan"), 1.0], [1.0, 2.0], "no finite number here"),
        ([1.0], [float("inf"), 2.0], ""),
    ],
)
def test_numbers_without_an_error(here, committed, reason):
    found = compare("row", NLL, by_seed(here), by_seed(committed))
    assert found.reason == reason and found.p is None
    assert decide([found])[0].differs == bool(reason)


def test_one_seed_on_both_sides_has_no_error():
    """The seed may have changed the number; it does not change its cost."""
    assert compare("row", NLL, {0: 0.31}, {0: 0.35}) is None
    assert compare("row", NLL, {0: 0.31}, {1: 0.31}) is None
    assert compare("row", NLL, {0: float("nan")}, {0: 0.35}).reason == "no finite number here"
    parameters = Column("cost/parameters", "Parameters", "", None, 0)
    assert compare("row", parameters, {0: 101}, {0: 100}).reason == "it does not depend on the seed"
    assert not compare("row", parameters, {0: 100}, {0: 100}).reason


def test_times_and_what_the_table_lacks_are_not_compared():
    assert is_time("cost/train_seconds") and is_time("cost/predict_ms_per_example")
    assert not is_time("cost/parameters") and not is_time("ood/ms/auroc")
    assert compare("row", Column("cost/train_seconds", "Time"), {0: 1.0}, {0: 2.0}) is None
    assert compare("row", NLL, {0: 1.0}, {}) is None


def test_what_differs_is_printed_as_the_table_shows_it(capsys):
    column = Column("classification/accuracy", "Accuracy", "%", "higher", 1)
    found = decide([compare("A", column, by_seed([0.5, 0.51, 0.52]), by_seed([0.9, 0.91, 0.925]))])
    print_check(found)
    output = capsys.readouterr().out
    assert "differs: A, Accuracy: 51.0 ± 0.6, committed 91.2 ± 0.7" in output
