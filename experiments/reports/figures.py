"""The figures of a report, with captions that say what to look at."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from experiments.prediction import archive
from experiments.reports import (
    costs,
    curves,
    datasets,
    kinds_figures,
    maps,
    plots,
    posteriors,
    region_figures,
    regression_figures,
    routing_figures,
    shortcut_figures,
)
from experiments.reports.layout import comparable
from experiments.reports.runs import Run
from experiments.reports.study import Study, one_line
from experiments.reports.style import looks
from experiments.runtime.keys import named

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CORRUPTION = {
    "accuracy": ("accuracy (%)", 100.0),
    "nll": ("NLL (nats)", 1.0),
    "ece": ("ECE (%)", 100.0),
    "rmse": ("RMSE (units of y)", 1.0),
    "crps": ("CRPS (units of y)", 1.0),
    "coverage_0.9": ("90 % coverage (%)", 100.0),
}


MARK = " · "  # in a heading, before the sets
FIRST = " First seed of each method."
POOLED = " Examples of all seeds; the number in the {} is the mean over seeds."


class Entry(NamedTuple):
    section: str
    name: str  # of its PNG
    figure: "Figure"
    caption: str


def figures(
    groups: Mapping[str, Sequence[Run]], *studies: Study, problems: list[str] | None = None
) -> Iterator[Entry]:
    """Every figure for which the runs have data, by section.

    Figures of training and of functions of the input show the first seed of each label, figures of
    single examples pool the seeds, and the others show means over seeds. The captions state which.

    Args:
      groups: the runs of each label.
      studies: tables with their own figures.
      problems: a list that gets a line for each figure whose arrays are inconsistent, which is left
        out; without it the error is raised.
    """
    style = looks([*(row.label for study in studies for row in study.rows), *groups])
    seed = FIRST * any(len(runs) > 1 for runs in groups.values())
    alike = [part for study in studies for part in by_data(study)]
    parts = {
        f"comparison{i or ''}": _comparison(study, style, f"_{i + 1}" * (i > 0))
        for i, study in enumerate(alike)
    }
    parts |= dict(
        classification=_classification(groups, style),
        posterior=_posteriors(groups, seed),
        map=_maps(groups, seed),
        routing=_routing(groups, seed),
        shortcuts=_shortcuts(groups),
        kinds=_kinds(groups),
        corruption=_corruption(groups, style),
        regression=_regression(groups, style, seed),
        regions=_regions(groups, seed),
        training=_training(groups, style, seed),
    )
    for name, part in parts.items():
        try:
            yield from part
        except Exception as error:
            if problems is None:
                raise
            reason = one_line(error) or type(error).__name__
            problems.append(
                f"figures of {name} are left out, their arrays are inconsistent: {reason}"
            )


def heading(section: str, groups: Mapping[str, Sequence[Run]], out: bool = False) -> str:
    """A section with the names and sizes of its sets: 'Calibration · digits[test], 360 examples'.

    Args:
      section: its name.
      groups: the runs of each label.
      out: whether out-of-distribution sets are meant too.
    """
    tests: dict[str, None] = {}
    outside: dict[str, None] = {}
    for run in (run for runs in groups.values() for run in runs):
        of = run.evaluated()
        for path, data in (of.sets or of.specs).items():
            if path in ("test", "data"):
                tests[datasets.sized(data)] = None
            elif path.startswith("ood."):
                outside[datasets.sized(data)] = None
    if not tests:
        return section
    words = next(iter(tests)) if len(tests) == 1 else f"different sets: {'; '.join(tests)}"
    words += f" against {'; '.join(outside)}" * (out and bool(outside))
    return f"{section}{MARK}{words}"


def by_data(study: Study) -> list[Study]:
    """The study, or one for each part of its rows that were evaluated on the same data."""
    numbers = comparable(study)
    keys = [(row.group, number) for row, number in zip(study.rows, numbers, strict=True)]
    groups = {group for group, _ in keys}
    if len(set(keys)) == len(groups):
        return [study]
    parts = [
        [row for row, own in zip(study.rows, numbers, strict=True) if own == number]
        for number in sorted(set(numbers))
    ]
    return [dataclasses.replace(study, rows=rows) for rows in parts]


def _comparison(study: Study, style: Mapping, suffix: str) -> Iterator[Entry]:
    if sum(bool(row.results) for row in study.rows) > 1:
        caption = "One seed of each method: small differences may be chance."
        if any(len(row.results) > 1 for row in study.rows):
            caption = (
                "Mean over seeds; bars are standard errors. Differences within the bars may be "
                "chance."
            )
        if apart := datasets.described([run for row in study.rows for run in row.data]):
            caption += f" Evaluated on {apart}."
        if any(row.published for row in study.rows):
            caption += " Hollow diamonds are published values."
        yield Entry("Comparison", f"comparison{suffix}", curves.comparison(study, style), caption)
    if costs.costed(study):
        yield Entry(
            "Comparison",
            f"cost{suffix}",
            costs.quality_against_cost(study, costs.costed(study)),
            "NLL against floating point operations: what is further left is cheaper, what is lower "
            "is better. Mean over seeds; bars are standard errors. Compare what stands above one "
            "another.",
        )


def _corruption(groups: Mapping[str, Sequence[Run]], style: Mapping) -> Iterator[Entry]:
    shifted = {
        label: [run.metrics for run in runs]
        for label, runs in groups.items()
        if any(map(curves.severity_of, runs[0].metrics))
    }
    if shifted:
        places = [curves.severity_of(key) for m in shifted.values() for key in m[0]]
        names = {place[1] for place in places if place}
        metrics = {name: look for name, look in CORRUPTION.items() if name in names}
        yield Entry(
            heading("Corruption", groups),
            "corruption",
            curves.corruption_curves(shifted, metrics, style),
            "Mean over kinds of corruption by severity; severity 0 is the clean test set, bars are "
            "standard errors over seeds. Look at how fast the calibration error grows, or the "
            "coverage falls, as the error grows: a model that knows what it does not know stays "
            "flat.",
        )
    sets = {label: [run.metrics for run in runs] for label, runs in groups.items()}
    if curves.shifted_sets(sets):
        yield Entry(
            heading("Coverage under shift", groups),
            "coverage",
            curves.coverage_curves(sets, style),
            "Coverage of conformal sets and intervals by the severity of corruption, mean over "
            "kinds; severity 0 is the clean test set, bars are standard errors over seeds. The "
            "grey band is where a valid method lies with a probability of 95 %, for examples that "
            "are exchangeable with those that calibrated it: corrupted ones are not, and nothing "
            "promises them this coverage.",
        )


def _training(groups: Mapping[str, Sequence[Run]], style: Mapping, seed: str) -> Iterator[Entry]:
    histories = {
        label: runs[0].history
        for label, runs in groups.items()
        if any("loss" in h for h in runs[0].history)
    }
    if histories:
        yield Entry(
            "Training",
            "training",
            curves.training_curves(histories, style),
            "Training loss; thin lines are members. Look for members that differ from the others, "
            "for loss that still falls at the end, and for validation that turns upwards." + seed,
        )


def _classification(groups: Mapping[str, Sequence[Run]], style: Mapping) -> Iterator[Entry]:
    several = any(len(runs) > 1 for runs in groups.values())
    pooled = POOLED * several
    scored = {
        label: [run.scores for run in runs if "test/confidence" in run.scores]
        for label, runs in groups.items()
    }
    scored = {label: seeds for label, seeds in scored.items() if seeds}
    pairs = {
        label: [(s["test/confidence"], s["test/prediction"] == s["test/label"]) for s in seeds]
        for label, seeds in scored.items()
    }
    if pairs:
        yield Entry(
            heading("Calibration", groups),
            "reliability",
            plots.reliability_diagram(pairs, style=style),
            "Accuracy against confidence in 15 bins of equal width, with Wilson intervals of 95 % "
            f"for the examples of one seed. Bins of fewer than {plots.FEW} examples are faint. "
            "Below the diagonal a model is overconfident, above it underconfident; the counts "
            "stand below." + pooled.format("legend"),
        )
        yield Entry(
            heading("Calibration", groups),
            "confidence",
            plots.confidence_histogram(pairs, style=style),
            "Confidence of right (filled) and wrong (outlined) predictions. Look at the wrong ones "
            "near 100 %: these are the errors that no threshold on the confidence finds."
            + " Examples of all seeds."
            * several,
        )
    # A single member has no disagreement but for rounding.
    yield from _out_of_distribution(groups, style, OF_CLASSES, "nats", least=1e-6)
    if pairs:
        yield Entry(
            heading("Selective prediction", groups),
            "risk_coverage",
            plots.risk_coverage_curves(pairs, style),
            "Error among the examples that are kept when the least confident ones are handed on; "
            "left of what is shown there is none. Lower is better; the right end is the error of "
            "the whole test set." + pooled.format("legend"),
        )


OF_CLASSES = {  # score -> its axis, and what it is
    "entropy": ("entropy", "the entropy of the prediction"),
    "mutual_information": (
        "mutual information",
        "the mutual information, which is how much members disagree,",
    ),
}
OF_TARGETS = {  # variances, of which the roots are drawn
    "predictive_variance": (
        "predictive standard deviation",
        "the predictive standard deviation, of noise and disagreement together,",
    ),
    "epistemic_variance": (
        "epistemic standard deviation",
        "the standard deviation of the members' means, which is how much they disagree,",
    ),
}


def _out_of_distribution(
    groups: Mapping[str, Sequence[Run]],
    style: Mapping,
    scores: Mapping[str, tuple[str, str]],
    unit: str,
    transform: Callable[[np.ndarray], np.ndarray] = np.asarray,
    least: float = 0.0,
) -> Iterator[Entry]:
    """A figure for each score.

    Args:
      groups: the runs of each label.
      style: of the labels.
      scores: which.
      unit: of what is drawn.
      transform: of the scores, to what is drawn; rising.
      least: the range of a score on the in-distribution set above which a label is drawn.
    """
    several = any(len(runs) > 1 for runs in groups.values())
    for score, (axis, title) in scores.items():
        shown = {}
        for label, runs in groups.items():
            seeds = [_ood(run.scores, score, transform) for run in runs if run.scores]
            if seeds and all(s and np.ptp(s[0]) > least for s in seeds):
                shown[label] = seeds
        if shown:
            yield Entry(
                heading("Out of distribution", groups, out=True),
                f"ood_{score}",
                plots.ood_histograms(shown, f"{axis} ({unit})", style),
                f"Densities of {title} on in-distribution and other data (vertical axis in square "
                "roots). The less the two overlap, the better OOD data are detected; the AUROC is "
                "50 % for chance; AUPR has the other data as positives, and FPR95 is the share of "
                "the in-distribution data that is taken for other data where 95 % of those are "
                "found." + POOLED.format("title") * several,
            )


def _ood(
    scores: Mapping[str, np.ndarray], score: str, transform: Callable[[np.ndarray], np.ndarray]
) -> plots.Scores | None:
    """The score of the in-distribution set and of each OOD set, or None."""
    parts = {key: named(key, "ood") for key in scores}
    outside = {of[0]: transform(scores[key]) for key, of in parts.items() if of and of[1] == score}
    inside = scores.get(f"{archive.INSIDE}/{score}", scores.get(f"test/{score}"))
    if not outside or inside is None:
        return None
    return transform(inside), outside


def _read(read: Callable, groups: Mapping[str, Sequence[Run]]) -> dict[str, Any]:
    """label -> `read` of the first run's arrays and all runs' metrics, where it is not None."""
    contents = {
        k: read(runs[0].scores, [run.metrics for run in runs]) for k, runs in groups.items()
    }
    return {label: content for label, content in contents.items() if content}


def _posteriors(groups: Mapping[str, Sequence[Run]], seed: str) -> Iterator[Entry]:
    methods = _read(posteriors.read, groups)
    if methods:
        _, reference = next(iter(methods.values()))
        yield Entry(
            "Against the true posterior",
            "posterior",
            posteriors.posteriors({label: m for label, (m, _) in methods.items()}, reference),
            "Functions of each method's particles beside those of draws from the posterior (NUTS): "
            "the band of 95 % over one input, or the entropy of the mean prediction over a plane. "
            "W1 is the 1-Wasserstein distance between the two at a point, mean over a grid and "
            "over seeds. Look at where there are no data: a band that is narrower than the "
            "reference's, or a plane that is darker, is too sure." + seed,
        )


def _maps(groups: Mapping[str, Sequence[Run]], seed: str) -> Iterator[Entry]:
    methods = _read(maps.read, groups)
    if methods:
        means = any(m.groups for m in methods.values())
        yield Entry(
            "Uncertainty over the inputs",
            "map",
            maps.maps(methods),
            "Over the plane of inputs: the probabilities of the classes as mixed colours, with the "
            "training points by their labels and out-of-distribution points in black; the entropy "
            "of the prediction; and parts of the latent's standard deviation where a method has "
            "them: the noise of the labels, and what is epistemic (the distance to the data, and "
            "how far members disagree). Look for entropy that is high on noisy labels and away "
            "from the data, and for which part says why."
            + " Numbers are means over parts of the test data and all seeds." * means
            + seed,
        )


def _routing(groups: Mapping[str, Sequence[Run]], seed: str) -> Iterator[Entry]:
    methods = _read(routing_figures.read, groups)
    if methods:
        yield Entry(
            "Experts",
            "routing",
            routing_figures.classes_by_experts(methods),
            "Where the tokens of each class go, in every layer with experts; white lines part "
            "members, each with experts or at least with tokens of its own, and of several "
            "particles the first is shown. Below stand the mutual information I of class and "
            "expert (0: all classes use experts alike), the choices that are dropped, and the load "
            "of the least and of the most busy expert over the mean load, as means over particles "
            "and seeds. Look for rows that differ, which are experts that know their classes, and "
            "for columns that are dark throughout, which are experts without work." + seed,
        )


def _shortcuts(groups: Mapping[str, Sequence[Run]]) -> Iterator[Entry]:
    metrics = {label: [run.metrics for run in runs] for label, runs in groups.items()}
    arrays = {label: runs[0].scores for label, runs in groups.items()}
    if tested := shortcut_figures.randomised(metrics, arrays):
        yield Entry(
            "Simple and complex features",
            "simplicity",
            shortcut_figures.simplicity(tested),
            "Accuracy of the mixture on the test set, with the simple features of other examples, "
            "and with all other features of other examples: means over seeds, with the members of "
            "the first seed as faint points. A method that uses simple features alone is at chance "
            "with other simple features, and as good as before with other complex ones.",
        )
    if cues := shortcut_figures.of_cues(metrics):
        yield Entry(
            "Cues",
            "cues",
            shortcut_figures.cues(cues),
            "Left: accuracy of the mixture where the label is the value of one cue and the others "
            "are independent of it; all cues tell the class in training. Right: the share of "
            "members that are best on the set of each cue. Means over seeds. An ensemble whose "
            "members all have one colour has a single opinion on what the class is.",
        )


def _kinds(groups: Mapping[str, Sequence[Run]]) -> Iterator[Entry]:
    metrics = {label: [run.metrics for run in runs] for label, runs in groups.items()}
    if tested := kinds_figures.of_kinds(metrics):
        yield Entry(
            "Kinds of members",
            "kinds",
            kinds_figures.kinds(tested),
            "Accuracy of mixtures of two members against how often their classes differ, by the "
            "kinds of both; pairs of one kind are hollow. Large points are means over seeds, small "
            "ones seeds. Where members are equally accurate, pairs that differ more gain more.",
        )


def _regression(groups: Mapping[str, Sequence[Run]], style: Mapping, seed: str) -> Iterator[Entry]:
    methods = {}
    for label, runs in groups.items():
        s = runs[0].scores
        if {"test/mean", "test/variance", "test/y"} <= s.keys():
            n, x = len(s["test/y"]), s.get("test/x")
            if s["test/y"].size == n:  # one target per example; mean and variance [M, B, 1]
                moments = (s[f"test/{name}"].reshape(-1, n) for name in ("mean", "variance"))
                x = x.ravel() if x is not None and x.size == n else None
                grid = None
                if "grid/x" in s and s["grid/x"].size == s["grid/mean"].shape[1]:
                    curve = (s[f"grid/{name}"].squeeze(-1) for name in ("mean", "variance"))
                    grid = regression_figures.Prediction(None, *curve, s["grid/x"].ravel())
                methods[label] = regression_figures.Prediction(
                    s["test/y"].ravel(), *moments, x, grid
                )
    lines = {label: p for label, p in methods.items() if p.x is not None}
    section = heading("Regression", groups)
    if lines:
        yield Entry(
            section,
            "band",
            regression_figures.predictive_band(lines, style),
            "Predictive mean with one and two standard deviations (noise and disagreement "
            "together), the members' means as thin lines, and the test points. The band should "
            "widen where there is no training data." + seed,
        )
    if methods:
        yield Entry(
            section,
            "intervals",
            regression_figures.interval_calibration(methods, style),
            "Targets that fall into the central intervals of the predictive mixture. Below the "
            "diagonal the intervals are too narrow, above it too wide." + seed,
        )
        yield Entry(
            section,
            "predicted",
            regression_figures.predicted_against_true(methods, style),
            "Predictive mean against the target, both in the units in which y is stored; bars are "
            "one predictive standard deviation. On the dotted line a prediction is right." + seed,
        )
        yield Entry(
            section,
            "sharpness",
            regression_figures.sharpness(methods, style),
            "Sharpness: predictive standard deviations of all examples, in the units in which y is "
            "stored; dashed lines are each method's RMSE. Further left is sharper, which is better "
            "only as far as intervals stay calibrated." + seed,
        )
    targets = [s["test/y"] for s in (runs[0].scores for runs in groups.values()) if "test/y" in s]
    one = all(y.size == len(y) for y in targets)
    unit = "units of y" if one else "1: that of the targets"
    yield from _out_of_distribution(groups, style, OF_TARGETS, unit, np.sqrt)


def _regions(groups: Mapping[str, Sequence[Run]], seed: str) -> Iterator[Entry]:
    methods = _read(region_figures.read, groups)
    if not methods:
        return
    first = next(iter(methods.values()))
    several = any(r.directions.shape[1] > 2 for r in methods.values())
    section = heading("Regions of several targets", groups)
    yield Entry(
        section,
        "regions",
        region_figures.outlines(methods),
        f"Regions that are calibrated for {100 * first.nominal:g} % of examples, of test examples "
        "that are evenly spaced over the set, in the units of the targets. A predicted one is cut "
        "by the mixture's own quantiles, which nothing calibrates. A slanted directional region "
        "knows that the targets err together, which a box cannot."
        + " Of more than two targets these are projections on the first two: what is outside of a "
        "projection is outside of the region, not the other way round." * several + seed,
    )
    yield Entry(
        section,
        "region_coverage",
        region_figures.coverage_by_direction(methods),
        "Examples whose targets lie above the mixture's quantile in a direction (0 degrees: along "
        "the first target, 90: the second), at three levels; dotted lines are nominal, and bands "
        "where 95 % of the shares of calibrated predictions lie. A direction and its opposite both "
        "too low: predictions are too narrow along it; one too low and the other too high: they "
        "are shifted. Crosses are the half-spaces of the calibrated directional regions, of which "
        "the title has the share of examples inside all of them, the mean over seeds: nominally "
        f"{100 * first.nominal:g} %."
        + " Of K targets, K above 2, the first K directions are along these, and the next K are "
        "their opposites." * several + seed,
    )
