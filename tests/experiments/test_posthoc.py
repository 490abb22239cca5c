"""Post-hoc and conformal evaluators against the library's functions on predictions by hand."""

import dataclasses
import itertools
import logging
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special
from sklearn.metrics import roc_auc_score

from configs.tabular import diabetes
from experiments import evaluators
from experiments.data import labels
from experiments.data.description import read_description
from experiments.data.overlap import require_apart, share
from experiments.data.source import load
from experiments.evaluators.conformal import unbounded
from experiments.evaluators.halves import in_halves
from experiments.evaluators.joint import at_temperature, of_functions
from experiments.evaluators.ood import ood
from experiments.experiment.build import setup
from experiments.experiment.exported import export_all
from experiments.experiment.results import write_results
from experiments.prediction import fitted
from experiments.prediction.held_out import require_held_out
from experiments.prediction.predictor import Predictor
from experiments.prediction.trained import Trained
from experiments.reports.runs import Run, study_of
from experiments.runtime import keys, storage
from experiments.runtime.checkpoint import Checkpoints
from experiments.runtime.workdir import read_config, read_json
from experiments.scoring.files import read
from experiments.scoring.measure import score
from experiments.scoring.parts import Options
from uncertainty import metrics
from uncertainty.build import ConfigError
from uncertainty.conformal import aps, lac, split
from uncertainty.metrics import calibration, joint
from uncertainty.metrics.sets import evaluate_sets
from uncertainty.metrics.smooth import smooth_ece
from uncertainty.posthoc import temperature, variance_scale

SEEN = tuple(range(8))
TRAIN, FIT, TEST = (
    dict(name="digits", split=s, classes=SEEN) for s in ("train", "validation", "test")
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def predictor(digits):
    experiment = setup(read_config(digits), read_description(digits))
    return Predictor(experiment, Checkpoints(digits, read_only=True).restore(experiment.shapes)[0])


@pytest.fixture(scope="module")
def by_hand(predictor):
    """spec -> log p [2, B, 8] and labels."""
    return lambda spec: (predictor.log_probs(spec), predictor.source(spec).y)


def run(predictor, **spec):
    evaluator = evaluators.build("e", spec)
    values = dict(evaluator.run(predictor))
    numbers = {k: v for k, v in values.items() if not isinstance(v, np.ndarray)}
    assert all(keys.among(key, evaluator.yields) for key in numbers)
    return numbers, {k: v for k, v in values.items() if k not in numbers}


def test_calibrated_metrics_stand_beside_the_uncalibrated(predictor, by_hand, tmp_path):
    methods = ("temperature", dict(name="temperature", of="members"), "vector")
    severe = dict(severities=(5,), kinds=("contrast", "gaussian_noise"))
    numbers, arrays = run(
        predictor, name="posthoc", data=TEST, fit=FIT, methods=methods, corrupted=severe
    )
    log_p, y = by_hand(FIT)
    pooled = special.logsumexp(log_p.astype(np.float64), 0) - np.log(2)
    own = temperature(pooled, y)
    test, labels = by_hand(TEST)
    np.testing.assert_allclose(numbers["posthoc/temperature/temperature"], own.temperature)
    after = own(special.logsumexp(test.astype(np.float64), 0) - np.log(2))[None]
    for predictions, label in ((test, "uncalibrated"), (after, "temperature")):
        expected = metrics.evaluate_classification(predictions, labels)
        for name in ("classification/nll", "calibration/ece", "classification/accuracy"):
            key = f"posthoc/{label}/{name.partition('/')[2]}"
            np.testing.assert_allclose(numbers[key], expected[name], rtol=1e-6)
    mean = np.mean([temperature(m, y).temperature for m in log_p])
    np.testing.assert_allclose(numbers["posthoc/temperature_members/temperature"], mean)
    nll = numbers["posthoc/uncalibrated/severity_5/nll"]
    assert nll > 2 * numbers["posthoc/uncalibrated/nll"]

    # Saved beside the results, and read again.
    folder = storage.path(tmp_path / "test")
    write_results(folder, numbers, arrays, {})
    assert not np.load(folder / "scores.npz").files
    again = fitted.read(folder, "posthoc", "temperature")
    np.testing.assert_allclose(again(test), after, rtol=1e-12)
    members = fitted.read(folder, "posthoc", "temperature_members")(test)
    np.testing.assert_allclose(members[1], temperature(log_p[1], y)(test[1]), rtol=1e-12)
    with pytest.raises(ConfigError, match=r"no 'temp' of posthoc; did you mean 'temperature'"):
        fitted.read(folder, "posthoc", "temp")
    write_results(folder, numbers, {}, {})
    with pytest.raises(ConfigError, match=r"fitted\.npz: missing"):
        fitted.read(folder, "posthoc", "temperature")


def test_sets_with_and_without_temperature(predictor, by_hand, tmp_path):
    numbers, arrays = run(
        predictor,
        name="conformal",
        data=TEST,
        fit=FIT,
        methods=("lac", dict(name="aps", randomised=False), dict(name="lac", by="class")),
        posthoc=("temperature", dict(name="vector", label="scaled")),
        corrupted=dict(severities=(5,), kinds=("contrast",)),
    )
    log_p, y = by_hand(FIT)
    first, used = np.split(np.random.default_rng([0, 1]).permutation(len(y)), [len(y) // 2])

    def pool(members):
        return special.logsumexp(members.astype(np.float64), 0) - np.log(2)

    scale = temperature(pool(log_p[:, first]), y[first])
    test, labels = by_hand(TEST)
    for label, map_ in (("aps", lambda x: x), ("aps_temperature", scale)):
        sets = aps(map_(pool(log_p))[used], y[used], randomised=False)
        expected = evaluate_sets(sets(map_(pool(test))), labels, 0.1)
        for name, value in expected.items():
            np.testing.assert_allclose(numbers[f"conformal/{label}/{name}"], value)
    low, high = (numbers[f"conformal/lac/expected_{end}"] for end in ("low", "high"))
    assert low < 0.9 < high
    assert numbers["conformal/lac/coverage"] > numbers["conformal/lac/severity_5/coverage"]
    # Seven or eight examples calibrate some classes, too few for 90 %.
    smallest = np.bincount(y[used], minlength=8)
    assert numbers["conformal/lac_by_class/unbounded"] == np.mean(smallest < 9)
    assert "conformal/lac_by_class/expected_low" not in numbers

    folder = storage.path(tmp_path / "test")
    write_results(folder, numbers, arrays, {})
    again = fitted.read(folder, "conformal", "aps_temperature")
    before = fitted.read(folder, "posthoc", "before_aps_temperature")
    np.testing.assert_allclose(
        again(before(test)[0]).sum(1).mean(), numbers["conformal/aps_temperature/size"]
    )
    before = fitted.read(folder, "posthoc", "before_lac_scaled")
    assert before.calibrator.weights.shape == (8,)
    assert read_json(folder / "metrics.json") == numbers
    columns = [c.header for c in study_of([Run("a", {}, numbers)], "").columns]
    assert {"Coverage of LAC sets", "Size of APS temperature sets"} <= set(columns)


def test_calibration_in_detail(predictor, by_hand):
    numbers, arrays = run(predictor, name="calibration", data=TEST, risks=(0.02,), resamples=50)
    log_p, y = by_hand(TEST)
    p = np.exp(log_p.astype(np.float64)).mean(0)
    confidence, correct = p.max(-1), p.argmax(-1) == y
    np.testing.assert_allclose(
        numbers["calibration/smooth_ece"], smooth_ece(confidence, correct), rtol=1e-4
    )
    errors = calibration.classwise(log_p, y)
    for k in range(8):
        low, value, high = (
            numbers[f"calibration/class/{k}/{name}"] for name in ("ece_low", "ece", "ece_high")
        )
        np.testing.assert_allclose(value, errors[k], rtol=1e-6)
        assert low <= high
    assert numbers["selective/coverage_at_0.02_error"] >= (p.max(-1) > 0.99).mean()
    assert arrays["calibration/rejected"].shape == y.shape
    with pytest.raises(ValueError, match=r"groups: digits\[test\] has no entry 'group'"):
        run(predictor, name="calibration", data=TEST, groups="group")
    for fields, message in (
        (dict(risks=(2.0,)), r"e\.risks: \(2\.0,\)"),
        (dict(resamples=1), r"e\.resamples, level: 1"),
    ):
        with pytest.raises(ConfigError, match=message):
            evaluators.build("e", dict(name="calibration", data=TEST) | fields)


def test_groups_calibrate_and_are_reported_apart(predictor, tmp_path):
    spec = {}
    for part in ("validation", "test"):
        source = load(dict(TEST, split=part))
        group = np.arange(len(source)) % 2
        spec |= {f"x_{part}": source.x, f"y_{part}": source.y, f"group_{part}": group}
    np.savez(tmp_path / "grouped.npz", **spec)
    grouped = dict(name="npz", path=str(tmp_path / "grouped.npz"), entries=("group",))
    fit, test = (dict(grouped, split=part) for part in ("validation", "test"))
    numbers, _ = run(
        predictor,
        name="conformal",
        data=test,
        fit=fit,
        groups="group",
        methods=("lac", dict(name="lac", by="group")),
    )
    log_p, y = predictor.log_probs(fit), predictor.source(fit).y
    pooled = special.logsumexp(log_p.astype(np.float64), 0) - np.log(2)
    fitted_sets = lac(pooled, y, by="group", groups=np.arange(len(y)) % 2)
    log_p, y = predictor.log_probs(test), predictor.source(test).y
    groups = np.arange(len(y)) % 2
    sets = fitted_sets(special.logsumexp(log_p.astype(np.float64), 0) - np.log(2), groups=groups)
    for name, value in evaluate_sets(sets, y, 0.1, groups).items():
        np.testing.assert_allclose(numbers[f"conformal/lac_by_group/{name}"], value)
    numbers, _ = run(predictor, name="calibration", data=test, groups="group", classes=False)
    assert numbers["calibration/group/0/examples"] == (groups == 0).sum()
    correct = np.exp(log_p).mean(0).argmax(-1) == y
    accuracy = [correct[groups == g].mean() for g in (0, 1)]
    np.testing.assert_allclose(numbers["calibration/worst_group_accuracy"], min(accuracy))


def test_unbounded_is_a_share_of_the_groups_of_the_test_set(tmp_path):
    log_p = np.log(np.full((41, 2), 0.5))
    groups = np.array([10] * 20 + [30] * 20 + [20])
    fitted_sets = lac(log_p, np.zeros(41, int), by="group", groups=groups)
    assert unbounded(fitted_sets, np.repeat([10, 30], 5)) == 0
    assert unbounded(fitted_sets, groups) == pytest.approx(1 / 3)  # 20 has one example
    assert unbounded(fitted_sets, np.array([10, 10, 11])) == 0.5
    assert unbounded(lac(log_p, np.zeros(41, int)), groups) == 0
    targets = split(np.zeros((41, 2)), np.ones((41, 2)), by="group", groups=groups)
    assert unbounded(targets, groups) == pytest.approx(1 / 3)
    # Predictors of older files lack the fields that are newer.
    items = fitted.arrays_of("conformal", "lac", dict(name="lac"), fitted_sets)
    older = {key: a for key, a in items if not key.endswith(("/ids", "/least"))}
    write_results(storage.path(tmp_path), {}, older, {})
    read = fitted.read(tmp_path, "conformal", "lac")
    assert read.least is None and not len(read.ids)
    np.testing.assert_array_equal(read.quantile, fitted_sets.quantile)


def test_joint_predictions_of_points_and_of_functions(predictor, digits, caplog):
    numbers, _ = run(predictor, name="joint", data=TEST, tau=4)
    p = predictor(TEST)
    order = np.random.default_rng(0).permutation(len(p.y))
    expected = joint.dyadic_nll(p.log_p[:, order], p.y[order], 4)
    np.testing.assert_allclose(numbers["joint/dyadic_nll"], expected, rtol=1e-6)
    assert numbers["joint/functions"] == 2 and numbers["joint/dyadic_gain"] > 0

    # One temperature of both members, that of one half for the other.
    numbers, _ = run(predictor, name="joint", data=TEST, tau=4, halves=True, seed=2)
    each, fitted_to = [], []
    for held, other in in_halves(len(p.y), 2):

        def nll(t, rows=held):
            of_labels = special.log_softmax(p.log_p[:, rows] / t, -1)[
                :, range(len(rows)), p.y[rows]
            ]
            return -special.logsumexp(of_labels, 0, b=1 / 2).mean()

        T = min(np.geomspace(0.2, 5, 2001), key=nll)
        q = special.softmax(p.log_p[:, other].astype(np.float64) / T, -1)
        q = q[:, range(len(other)), p.y[other]]
        for i in range(0, len(other) - 1, 2):
            draws = itertools.product((i, i + 1), repeat=4)  # all 2^4 are as likely
            each.append(np.mean([-np.log(q[:, list(draw)].prod(1).mean()) for draw in draws]))
        fitted_to.append(T)
    np.testing.assert_allclose(numbers["joint/halves/dyadic_nll"], np.mean(each), rtol=3e-3)
    np.testing.assert_allclose(numbers["joint/halves/temperature"], np.mean(fitted_to), rtol=3e-3)
    assert numbers["joint/dyadic_nll"] != numbers["joint/halves/dyadic_nll"]
    assert "of its range" not in caplog.text
    right = p.log_p.mean(0).argmax(-1)  # as labels that are all predicted
    certain = special.log_softmax(2 * np.eye(8)[np.stack([right, right])], -1)
    assert at_temperature(certain, right, 4, 0)["temperature"] == pytest.approx(0.01)
    assert "joint: the best temperature of 2 of 2 halves is outside of its range" in caplog.text

    # The same networks with a posterior over the last layer, of which functions are drawn.
    config = read_config(digits)
    config |= dict(
        head=dict(name="laplace.Laplace", outputs=8, curvature="softmax"),
        stages=[dict(name="laplace")],
    )
    experiment = setup(config, read_description(digits))
    state = Checkpoints(digits, read_only=True).restore(predictor.runs[0].experiment.shapes)[0]
    shapes = experiment.final_shapes.collections
    factor = jax.tree.map(lambda s: jnp.broadcast_to(0.3 * jnp.eye(s.shape[-1]), s.shape), shapes)
    state = state.replace(collections=factor, opt_state=())
    wide = Predictor(experiment, state)
    q = wide(TEST)
    assert q.epistemic is not None
    numbers, _ = run(wide, name="joint", data=TEST, tau=4, draws=60)
    assert numbers["joint/functions"] == 120
    # Marginally these functions are the averages that the likelihood made; jointly they are not.
    of_labels = of_functions(wide.runs[0], q.source, 60, noisy=False)
    assert of_labels.shape == (120, len(q.y))
    own = special.logsumexp(of_labels, 0) - np.log(120)
    mixed = special.logsumexp(q.log_p, 0)[np.arange(len(q.y)), q.y] - np.log(2)
    np.testing.assert_allclose(own.mean(), mixed.mean(), rtol=0.05)
    assert numbers["joint/dyadic_gain"] > 0
    with pytest.raises(ValueError, match="halves: True, but functions are drawn from a head's"):
        run(wide, name="joint", data=TEST, halves=True)
    with pytest.raises(ValueError, match="averages over a Gaussian"):
        joint.dyadic_nll(q.log_p, q.y, epistemic=q.epistemic)


def test_likelihoods_of_one_class_are_not_of_independent_ones(predictor, digits):
    config = read_config(digits) | dict(likelihood=dict(name="sigmoid"))
    experiment = setup(config, read_description(digits), evaluated=False)
    independent = Predictor(experiment, predictor.runs[0].state)
    for name, fields in (("joint", {}), ("kinds", dict(kinds=("a", "b"))), ("human", {})):
        with pytest.raises(ValueError, match=r"likelihood: .*'sigmoid'.* is of independent"):
            run(independent, name=name, data=TEST, **fields)


@pytest.fixture(scope="module")
def of_targets():
    config = diabetes.get_config()
    config.mesh = dict(data=1)
    config.evaluators = {}
    experiment = setup(config)
    return Predictor(experiment, experiment.init())


def test_intervals_of_targets(of_targets):
    data, fit = (dict(name="diabetes", split=s) for s in ("test", "validation"))
    numbers, arrays = run(of_targets, name="intervals", data=data, fit=fit, alpha=0.2)
    p, q = of_targets(fit), of_targets(data)
    unit = float(np.squeeze(q.source.y_std))
    mean, y = p.mean.astype(np.float64).mean(0), p.y
    low, high = split(mean, y, alpha=0.2)(q.mean.astype(np.float64).mean(0))
    hit = ((low <= q.y) & (q.y <= high)).mean()
    np.testing.assert_allclose(numbers["intervals/split/coverage"], hit)
    np.testing.assert_allclose(
        numbers["intervals/split/width"], unit * (high - low)[0, 0], rtol=1e-5
    )
    own = metrics.regression.interval_coverage(q.mean, q.variance, q.y, [0.8])
    np.testing.assert_allclose(numbers["intervals/predicted/coverage"], own[0])
    for name in ("split", "scaled", "cqr"):
        # Untrained networks: only what is calibrated covers.
        assert abs(numbers[f"intervals/{name}/coverage"] - 0.8) < 0.15
        ends = (numbers[f"intervals/{name}/expected_{end}"] for end in ("low", "high"))
        low, high = ends
        assert low < 0.8 < high
    assert any(key.startswith("fitted/conformal/cqr/") for key in arrays)
    with pytest.raises(ConfigError, match=r"e\.by_group: true needs `groups`"):
        evaluators.build("e", dict(name="intervals", data=data, fit=fit, by_group=True))
    with pytest.raises(ConfigError, match=r"e\.methods: .* some of 'predicted'"):
        evaluators.build("e", dict(name="intervals", data=data, fit=fit, methods=("lac",)))


@pytest.mark.parametrize("name", ["posthoc", "conformal"])
def test_examples_that_are_not_held_out_are_refused(predictor, name):
    training = load(TRAIN)
    for fit, message in (
        (dict(TRAIN), r"fit: .* is the training data"),
        (dict(TEST), r"fit: 100% of the 32\d examples of digits\[test\] .* test data"),
        (dict(TEST, split="test[:50%]"), r"fit: 100% of .* test data of this evaluator"),
    ):
        evaluator = evaluators.build("e", dict(name=name, data=TEST, fit=fit))
        with pytest.raises(ValueError, match=message):
            list(evaluator.run(predictor))
    # A minority of `fit`, but all that is reported.
    part = dict(TEST, split="test[:40%]")
    evaluator = evaluators.build("e", dict(name=name, data=part, fit=dict(TEST)))
    with pytest.raises(
        ValueError, match=r"data: 100% of .* in digits\[test\], the examples to fit on"
    ):
        list(evaluator.run(predictor))
    inside = evaluators.build("e", dict(name=name, data=TEST, fit=dict(TRAIN, split="train[80%:]")))
    with pytest.raises(ValueError, match=r"fit: 100% of .* in digits\[train\], the training data"):
        inside.check(training)
    evaluators.build("e", dict(name=name, data=TEST, fit=FIT)).check(training)


def test_training_examples_of_a_further_run_are_refused(predictor, digits, caplog):
    config = read_config(digits)
    config["data"]["train"] = train = dict(config["data"]["train"], split="train+validation")
    experiment = setup(config, read_description(digits), evaluated=False)
    state = predictor.runs[0].state
    both = Predictor.join(dict(a=predictor, b=Predictor(experiment, state)))
    evaluator = evaluators.build("e", dict(name="posthoc", data=TEST, fit=FIT))
    with pytest.raises(
        ValueError, match=r"fit: 100% of .*digits\[validation\].* the training data"
    ):
        list(evaluator.run(both))
    evaluator = evaluators.build("e", dict(name="posthoc", data=TEST, fit=train))
    with pytest.raises(ValueError, match=r"fit: .* is the training data"):
        list(evaluator.run(both))
    # Evaluation needs no training data: what cannot be read is logged.
    missing = setup(config, read_description(digits), evaluated=False)
    missing.config["data"]["train"] = dict(name="npz", path="missing.npz")
    with caplog.at_level(logging.WARNING):
        require_held_out("fit", load(FIT), [*predictor.runs, Trained(missing, state)])
    assert "has training examples is not known: " in caplog.text


def test_examples_in_common_are_counted(caplog):
    test, other = load(TEST), load(FIT)
    assert share(test, other) == 0.0 and share(test, test) == 1.0
    mixed = dataclasses.replace(
        other, entries=dict(x=np.concatenate([other.x[:30], test.x[:10]]), y=other.y[:40])
    )
    assert share(mixed, test) == 0.25
    with caplog.at_level(logging.WARNING):
        require_apart("fit", mixed, test, "the test data")
    assert "fit: 25.0 % of the examples" in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(name="posthoc", methods=("temp",)), r"e\.methods\[0\]\.name: no file 'temp'"),
        (dict(name="posthoc", methods=()), r"e\.methods: \(\); a list"),
        (dict(name="posthoc", methods="vector"), r"e\.methods: 'vector' is a str"),
        (
            dict(name="posthoc", methods=(dict(name="vector", of="joint"),)),
            r"methods\[0\]\.of: 'joint' is for 'temperature'",
        ),
        (
            dict(name="posthoc", methods=(dict(name="temperature", minimum=2.0),)),
            r"methods\[0\]: minimum, maximum: 2.0",
        ),
        (dict(name="posthoc", methods=("vector", "vector")), r"methods\[1\]\.label: 'vector'"),
        (dict(name="posthoc", corrupted=dict(severities=(6,))), r"corrupted: .* from 1 to 5"),
        (dict(name="conformal", methods=("split",)), r"methods\[0\]\.name: 'split' is for targets"),
        (dict(name="conformal", alpha=1.5), r"alpha: 1.5"),
        (
            dict(
                name="conformal",
                methods=("lac", dict(name="lac", label="lac_temperature")),
                posthoc=("temperature",),
            ),
            r"methods: 'lac_temperature' is the label of one, and of another after `posthoc`",
        ),
        (dict(name="conformal", methods=(dict(name="lac", by="group"),)), r"needs `groups`"),
        (dict(name="conformal", posthoc="tmperature"), r"posthoc\[0\]\.name: no file 'tmperature'"),
        (dict(name="conformal", posthoc=dict(name="vector")), r"posthoc: .* a list of names"),
    ],
)
def test_wrong_fields_are_refused_before_anything_runs(change, message):
    with pytest.raises(ConfigError, match=message):
        evaluators.build("e", dict(data=TEST, fit=FIT) | change)


@pytest.fixture(scope="module")
def of_pairs(tmp_path_factory):
    """Untrained networks of two correlated targets, in a file with three parts."""
    rng = np.random.default_rng(0)
    path, arrays = tmp_path_factory.mktemp("pairs") / "pairs.npz", {}
    for part, B in (("train", 64), ("validation", 80), ("test", 70)):
        x = rng.normal(size=(B, 10)).astype(np.float32)
        common = rng.normal(size=(B, 1))
        y = x[:, :2] + 3 * common + 0.3 * rng.normal(size=(B, 2))
        arrays |= {f"x_{part}": x, f"y_{part}": 100 * y + 7}
        arrays[f"group_{part}"] = np.arange(B) % 2
    np.savez(path, **arrays)
    own = dict(name="npz", path=str(path), entries=("group",), standardise=True)
    config = diabetes.get_config()
    config.mesh, config.evaluators = dict(data=1), {}
    config.data.train = own | dict(split="train")
    config.head.outputs, config.inference.size = 2, 2
    experiment = setup(config)
    parts = {part: own | dict(split=part) for part in ("validation", "test")}
    return Predictor(experiment, experiment.init()), parts, arrays


def test_regions_and_a_scale_of_two_targets(of_pairs, tmp_path):
    predict, parts, arrays = of_pairs
    fields = dict(data=parts["test"], fit=parts["validation"], alpha=0.2)
    numbers, saved = run(predict, name="regions", groups="group", **fields)
    p, q = (predict(parts[part]) for part in ("validation", "test"))
    unit, shift = p.source.y_std, p.source.y_mean
    pairs = []
    for part, name in ((p, "validation"), (q, "test")):
        mean, variance = part.mean * unit + shift, part.variance * unit**2
        y = arrays[f"y_{name}"]
        np.testing.assert_allclose(part.y * unit + shift, y, rtol=1e-5)
        centre, std = mean.mean(0), np.sqrt(variance.mean(0) + mean.var(0))
        z = (y - centre) / std
        ends = [(metrics.regression.quantile(mean, variance, a) - centre) / std for a in (0.1, 0.9)]
        pairs.append((z, *ends, std))
    z, low, high, _ = pairs[0]
    moved = np.sort(np.maximum(low - z, z - high).max(1))[math.ceil(81 * 0.8) - 1]
    z, low, high, std = pairs[1]
    hits = ((low - moved <= z) & (z <= high + moved)).all(1)
    np.testing.assert_allclose(numbers["regions/box/coverage"], hits.mean())
    area = np.prod((high - low + 2 * moved) * std, 1).mean()
    np.testing.assert_allclose(numbers["regions/box/volume"], area, rtol=1e-4)
    of_groups = min(hits[arrays["group_test"] == g].mean() for g in (0, 1))
    np.testing.assert_allclose(numbers["regions/box/worst_group_coverage"], of_groups)
    assert numbers["regions/directional/expected_low"] < 0.8
    assert abs(numbers["regions/directional/coverage"] - 0.8) < 0.15
    assert "regions/predicted/unbounded" not in numbers
    columns = {c.header for c in study_of([Run("a", {}, numbers)], "").columns}
    assert {"Coverage of box regions", "Volume of directional regions"} <= columns
    # Figures: the box of each example that is drawn, and the mixture's quantiles by direction.
    some = [0, 34, 69]
    np.testing.assert_allclose(saved["regions/y"], arrays["y_test"][some], rtol=1e-5)
    box = saved["regions/box/outline"]
    for end, least in ((low - moved, np.min), (high + moved, np.max)):
        np.testing.assert_allclose(least(box, axis=1), (centre + end * std)[some], rtol=1e-4)
    shares = saved["regions/box/covered"]
    np.testing.assert_allclose(shares[:2], (low - moved <= z).mean(0))
    np.testing.assert_allclose(shares[2:], (z <= high + moved).mean(0))
    v, levels = saved["regions/directions"], saved["regions/levels"]
    np.testing.assert_allclose(levels, [0.5, 0.75, 0.9])
    means, variances = (mean - centre) / std @ v.T, variance / std**2 @ v.T**2
    for level, observed in zip(levels, saved["regions/covered"].T, strict=True):
        ends = metrics.regression.quantile(means, variances, 1 - level)
        np.testing.assert_allclose(observed, (z @ v.T >= ends).mean(0))
    np.testing.assert_allclose(saved["regions/predicted/covered"], saved["regions/covered"][:, 2])
    by_group, _ = run(predict, name="regions", groups="group", by_group=True, **fields)
    assert "regions/box/expected_low" not in by_group
    folder = storage.path(tmp_path / "test")
    write_results(folder, numbers, saved, {})
    assert fitted.read(folder, "conformal", "directional").directions.shape == (16, 2)

    del fields["alpha"]
    numbers, saved = run(predict, name="posthoc", methods=("variance_scale",), **fields)
    assert set(numbers) >= {"posthoc/uncalibrated/nll", "posthoc/variance_scale/scale"}
    given = [np.asarray(a, np.float64) for a in (p.mean * unit + shift, p.variance * unit**2)]
    calibrator = variance_scale(*given, arrays["y_validation"])
    after = calibrator(q.mean * unit + shift, q.variance * unit**2)
    expected = metrics.regression.crps(*after, arrays["y_test"])
    np.testing.assert_allclose(numbers["posthoc/variance_scale/crps"], expected, rtol=1e-5)
    write_results(folder, numbers, saved, {})
    again = fitted.read(folder, "posthoc", "variance_scale")
    np.testing.assert_allclose(again.scale, calibrator.scale, rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(name="regions", methods=("cqr",)), r"e\.methods: .* some of 'predicted', 'box'"),
        (dict(name="regions", directions=2), r"e\.directions: 2 of 2 targets; at least 3"),
        (dict(name="regions", by_group=True), r"e\.by_group: true needs `groups`"),
        (
            dict(name="posthoc", methods=("variance_scale", "temperature")),
            r"e\.methods: .* all are of classes, or all of targets",
        ),
        (
            dict(name="posthoc", methods=("variance_scale",), corrupted={}),
            r"e\.corrupted: corruptions are of images",
        ),
        (
            dict(name="posthoc", methods=(dict(name="variance_scale", of="members"),)),
            r"methods\[0\]\.of: 'members'; targets are calibrated as the mixture",
        ),
        (dict(name="conformal", posthoc="variance_scale"), r"posthoc: 'variance_scale' is for tar"),
    ],
)
def test_wrong_fields_of_targets_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        evaluators.build("e", dict(data=TEST, fit=FIT) | change)


def test_regions_of_one_target_are_refused(of_targets):
    data, fit = (dict(name="diabetes", split=s) for s in ("test", "validation"))
    evaluator = evaluators.build("e", dict(name="regions", data=data, fit=fit))
    with pytest.raises(ValueError, match="has 1 target; regions are of several"):
        evaluator.check(of_targets.reader.like)


def test_ood_sets_of_two_targets(of_pairs, tmp_path):
    """Against scikit-learn, and against the score of the saved predictions, to the last bit."""
    predict, parts, arrays = of_pairs
    x = 3 * arrays["x_test"] + 1
    np.savez(tmp_path / "far.npz", x_test=x)
    data, far = parts["test"], dict(name="npz", path=str(tmp_path / "far.npz"), split="test")
    evaluator = evaluators.build(
        "ood", dict(name="ood", data=data, sets=dict(far=far)), "regression"
    )
    found = dict(evaluator.run(predict))
    p, q = predict(data), predict(far, labels.UNUSED)
    unit = p.source.y_std**2 / arrays["y_test"].var(0)  # of the network's outputs to shares
    for name, of in dict(
        epistemic=lambda p: p.mean.var(0),
        aleatoric=lambda p: p.variance.mean(0),
        predictive=lambda p: p.mean.var(0) + p.variance.mean(0),
    ).items():
        inside, outside = ((of(each) * unit).mean(1) for each in (p, q))
        np.testing.assert_allclose(found[f"test/{name}_variance"], inside, rtol=1e-4)
        np.testing.assert_allclose(found[f"ood/far/{name}_variance"], outside, rtol=1e-4)
        area = roc_auc_score(np.r_[0 * inside, 0 * outside + 1], np.r_[inside, outside])
        np.testing.assert_allclose(found[f"ood/far/auroc_{name}_variance"], area, rtol=1e-6)
    assert found["ood/far/auroc_epistemic_variance"] > 0.8
    whole = evaluators.build("test", dict(name="regression", data=data), "regression")
    failures = export_all(predict, dict(a=whole, b=evaluator), tmp_path / "saved.npz")
    assert not failures
    (scored,) = score(read(str(tmp_path / "saved.npz")), "a", Options())
    numbers = {k: v for k, v in found.items() if np.ndim(v) == 0}
    assert numbers == {k: v for k, v in scored.metrics.items() if k.startswith("ood/")}


@pytest.mark.parametrize(
    ("task", "scores", "message"),
    [("regression", ["energy"], r"scores: \['energy'\]; of classes"), ("unlabelled", [], "labels")],
)
def test_ood_scores_that_there_are_none_of(of_pairs, task, scores, message):
    _, parts, _ = of_pairs
    source = load(parts["test"] | dict(standardise=False))
    if task == "unlabelled":
        source = dataclasses.replace(source, labelled=False, outputs=0)
    assert source.task == task
    sets = dict(far=parts["test"])
    with pytest.raises(ValueError, match=message):
        ood(parts["test"], sets, scores).check(source)
    if task == "regression":
        with pytest.raises(ValueError, match=r"layers: \['stage1'\]; of classes"):
            ood(parts["test"], sets, layers=("stage1",)).check(source)
