"""Functions over data, several runs as one ensemble, and files of predictions: all by NumPy."""

import json
import shutil
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from experiments.data.description import write_description
from experiments.data.source import load
from experiments.evaluate import evaluate, open_run, restore
from experiments.evaluators import Predicted
from experiments.experiment import config as config_lib
from experiments.experiment.base import base
from experiments.experiment.build import setup
from experiments.experiment.exported import export
from experiments.experiment.results import place, write_results
from experiments.prediction.predictor import Predictor
from experiments.prediction.trained import Part, Trained, aligned
from experiments.runtime.checkpoint import Checkpoints, of_training
from experiments.runtime.workdir import read_json, write_json
from experiments.scoring.files import read
from experiments.scoring.measure import score
from experiments.scoring.parts import Options
from uncertainty import metrics
from uncertainty.build import ConfigError

CLASSES, K, D, N = (0, 1, 2), 3, 64, 121  # digits: the last batch of 50 has 21
TEST = dict(name="digits", split="test", classes=CLASSES)


def config_of(seed=0, size=2, batch=50, train=None, **sections):
    """Networks that are linear in x."""
    config = base()
    config.seed, config.mesh, config.evaluation.batch_size = seed, dict(data=1), batch
    config.data.train = dict(TEST, split="train") if train is None else train
    config.backbone, config.head.outputs = dict(name="mlp.MLP", widths=()), K
    config.inference.update(size=size, executor="vmap")
    config.evaluators = dict(
        test=dict(name="classification", data=TEST),
        ood=dict(name="ood", data=TEST, sets=dict(a=dict(name="digits", classes=(8, 9)))),
        detail=dict(name="calibration", data=TEST, classes=False),
        shift=dict(name="corruption", data=TEST, kinds=("contrast",), severities=(2, 5)),
    )
    for section, value in sections.items():
        config[section] = value
    return config_lib.plain(config)


def made(workdir, step=3, **fields):
    """A workdir as training leaves it, of initial parameters."""
    experiment = setup(config_of(**fields))
    state = experiment.init()
    state = state.replace(step=jnp.full_like(state.step, step))
    checkpoints = Checkpoints(workdir, config=of_training(experiment.config))
    checkpoints.save(step, state)
    checkpoints.close()
    write_json(workdir / "config.json", experiment.config)
    write_description(workdir, experiment.source)
    return experiment, state


@pytest.fixture(scope="module")
def linear():
    experiment = setup(config_of())
    return Trained(experiment, experiment.init())


def logits(state, x):
    """[P, B, K] of linear networks, by NumPy."""
    w, b = (np.asarray(state.params["head"]["logits"][k], np.float64) for k in ("kernel", "bias"))
    return x.reshape(len(x), -1) @ w.reshape(len(w), D, K) + b.reshape(len(b), 1, K)


def saliency(trained):
    def gradient(state, batch):
        def nll(x):
            latent = trained.latents(state, {**batch, "x": x})
            return trained.likelihood.nll(latent, batch["y"], jax.random.key(0)).sum()

        return jax.grad(nll)(batch["x"])

    return gradient


def saliency_by_hand(state, source):
    """sum_p W_p (p_p(x) - onehot(y)), [N, D]."""
    x = source.gather(np.arange(len(source)))["x"]
    w = np.asarray(state.params["head"]["logits"]["kernel"]).reshape(-1, D, K)
    error = scipy.special.softmax(logits(state, x), axis=-1) - np.eye(K)[source.y]
    return np.einsum("pdk,pbk->bd", w, error)


def mapped(trained, fn, source, **options):
    return np.concatenate([part.out for part in trained.map(fn, source, **options)])


def test_map_takes_gradients_with_respect_to_the_inputs(linear):
    source = load(TEST)
    found = mapped(linear, saliency(linear), source, axis=0, entries=("x", "y"))
    assert found.shape == (N, 8, 8, 1)
    expected = saliency_by_hand(linear.state, source)
    np.testing.assert_allclose(found.reshape(N, D), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [dict(data=2), dict(data=1, particle=2)])
def test_map_on_two_devices_equals_one(linear, mesh):
    experiment = setup(config_of(mesh=mesh))
    both = Trained(experiment, jax.device_put(linear.state, experiment.shardings))
    source, options = load(TEST), dict(axis=0, entries=("x", "y"))
    one = mapped(linear, saliency(linear), source, **options)
    two = mapped(both, saliency(both), source, **options)
    np.testing.assert_allclose(two, one, rtol=1e-5, atol=1e-6)
    for part, other in zip(both.predictions(source), linear.predictions(source), strict=True):
        np.testing.assert_allclose(part.out["log_p"], other.out["log_p"], rtol=1e-5, atol=1e-6)


def test_map_over_particles_has_a_leading_axis(linear):
    source, traced = load(TEST), []

    def fn(particle, batch):
        traced.append(1)
        layer = particle[0]["head"]["logits"]
        x = batch["x"].reshape(len(batch["x"]), -1)
        return x @ layer["kernel"].reshape(D, K) + layer["bias"].reshape(K)

    parts = list(linear.map(fn, source, particles=True))
    assert [part.size for part in parts] == [50, 50, 21]
    found = np.concatenate([part.out for part in parts], axis=1)
    x = source.gather(np.arange(N))["x"]
    np.testing.assert_allclose(found, logits(linear.state, x), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(np.concatenate([p.examples["y"] for p in parts]), source.y)
    whole = [part.out.shape for part in linear.map(fn, source, particles=True, axis=None)]
    assert whole == [(2, 50, K)] * 3 and len(traced) == 1


@pytest.mark.parametrize("sizes", [(3, 3), (2, 5), (7, 1), (4,)])
def test_parts_of_several_runs_are_aligned(sizes):
    def stream(size, sign):
        for start in range(0, 7, size):
            y = np.arange(start, min(start + size, 7))
            yield Part({"y": y}, {"a": sign * np.stack([y, y])}, 1.0)

    streams = [stream(size, 1 - 2 * i) for i, size in enumerate(sizes)]
    parts = list(aligned(streams))
    for i in range(len(sizes)):
        assert np.concatenate([p[i].examples["y"] for p in parts]).tolist() == list(range(7))
        joined = np.concatenate([p[i].out["a"] for p in parts], axis=1)
        np.testing.assert_array_equal(joined, (1 - 2 * i) * np.stack([np.arange(7)] * 2))
        assert sum(p[i].seconds for p in parts) == -(-7 // sizes[i])
    for part in parts:
        assert len({tuple(p.examples["y"]) for p in part}) == 1


@pytest.fixture(scope="module")
def joined(tmp_path_factory):
    """Two runs that differ in seed, number and width of networks and batches, evaluated as one."""
    folder = tmp_path_factory.mktemp("joined")
    wide = dict(backbone=dict(name="mlp.MLP", widths=(5,)))
    runs = {
        folder / "a": made(folder / "a"),
        folder / "b": made(folder / "b", step=5, seed=1, size=1, batch=32, **wide),
    }
    a, b = (open_run(path) for path in runs)
    options = dict(name="both", show=False, predictions=True)
    values, failures = evaluate(a, folder / "a", others={folder / "b": b}, **options)
    assert not failures
    return folder, [state for _, state in runs.values()], values


def members(states, source):
    x = source.gather(np.arange(len(source)))["x"]
    params = jax.tree.map(lambda a: np.asarray(a, np.float64), states[1].params)
    hidden, last = params["backbone"]["dense0"], params["head"]["logits"]
    h = x.reshape(len(x), -1) @ hidden["kernel"][0].reshape(D, 5) + hidden["bias"][0].ravel()
    other = np.maximum(h, 0) @ last["kernel"][0].reshape(5, K) + last["bias"][0].ravel()
    both = np.concatenate([logits(states[0], x), other[None]])
    return scipy.special.log_softmax(both, axis=-1)


@pytest.mark.slow
def test_joined_runs_are_one_ensemble_of_all_members(joined):
    folder, states, found = joined
    source = load(TEST)
    expected = metrics.evaluate_classification(members(states, source), source.y)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-6, err_msg=name)
    sizes = [sum(a.size for a in jax.tree.leaves(state.params)) for state in states]
    assert found["cost/parameters"] == sum(sizes) and found["cost/step"] == 5
    runs = read_json(folder / "a" / "evaluation" / "both" / "runs.json")
    assert runs == [dict(workdir=".", step=3), dict(workdir="../b", step=5)]


def test_scores_of_a_file_are_the_metrics_of_the_evaluation(joined):
    """To the last bit, as sums are over the same parts."""
    folder, states, found = joined
    path = folder / "a" / "evaluation" / "both" / "predictions.npz"
    with np.load(path) as file:
        log_p, y, run = (file[name] for name in ("log_p", "y", "run"))
        about = json.loads(file["metadata.json"])
        outside = load(dict(name="digits", classes=(8, 9)))
        assert "ood/a/y" not in file and file["ood/a/log_p"].shape == (3, len(outside), K)
    assert log_p.dtype == np.float32 and log_p.shape == (3, N, K)
    np.testing.assert_array_equal(y, load(TEST).y)
    np.testing.assert_allclose(log_p, members(states, load(TEST)), rtol=1e-4, atol=1e-5)
    (scored,) = score(read(str(path)), "both", Options())
    assert scored.metrics == {k: v for k, v in found.items() if not k.startswith("cost/")}
    with np.load(path.parent / "scores.npz") as arrays:
        assert scored.arrays.keys() == set(arrays)
        for name, array in arrays.items():
            np.testing.assert_array_equal(scored.arrays[name], array)
    assert run.tolist() == [0, 0, 1] and about["runs"][1]["workdir"] == "../b"
    sets = ["corruption/contrast/2", "corruption/contrast/5", "ood/a", "test"]
    assert sorted(about["sets"]) == sets and next(iter(about["sets"])) == "test"
    assert about["sets"]["test"]["arrays"]["log_p"] | dict(meaning="") == dict(
        shape=[3, N, K], dtype="float32", axes=["members", "examples", "classes"], meaning=""
    )
    noted = read_json(path.parent / "sets.json")["test"]
    assert noted.items() <= about["sets"]["test"].items()
    assert noted["digest"] == load(TEST).digest()
    assert about["class_names"] == [str(k) for k in CLASSES]


def test_predictions_of_another_evaluation_do_not_stay_beside_its_results(joined, tmp_path):
    """They stay while they are of the same steps and test data."""
    results = joined[0] / "a" / "evaluation" / "both"
    runs, sets = (read_json(results / name) for name in ("runs.json", "sets.json"))
    further = [runs[0], runs[1] | dict(step=6)]
    digest = sets["test"]["digest"]
    changed = {
        path: noted | (dict(digest="0123abcd") if noted["digest"] == digest else {})
        for path, noted in sets.items()
    }
    cases = [
        (runs, sets, True),
        (further, sets, False),
        (runs[:1], sets, False),
        (runs, changed, False),
    ]
    for i, (of, data, stays) in enumerate(cases):
        folder = shutil.copytree(results, tmp_path / str(i))
        write_results(folder, {"a": 1.0}, {}, data, of)
        assert (folder / "predictions.npz").is_file() == stays
        assert read_json(folder / "metrics.json") == {"a": 1.0}


@pytest.mark.slow
def test_the_program_joins_workdirs_and_names_those_that_do_not_fit(joined, programs, tmp_path):
    folder, _, expected = joined
    a, b = folder / "a", folder / "b"
    twice = ["--workdir", f"{b}/../b", "--workdir", f"{a}/", "--save_predictions"]
    code, output = programs(
        "evaluate", "--workdir", a, "--workdir", b, *twice, "--save_predictions"
    )
    assert code == 0, output
    results = a / "evaluation" / "test-with-b"
    assert output.splitlines()[-1] == f"results: {results}"
    values = read_json(results / "metrics.json")
    assert values.keys() == expected.keys()
    for name in values:
        if "_ms_" not in name:  # on another number of devices, so to rounding
            assert values[name] == pytest.approx(expected[name], rel=1e-5, abs=1e-6), name
    assert (results / "predictions.npz").is_file()
    made(tmp_path / "other", **DIFFERENT["mean"])
    code, output = programs("evaluate", "--workdir", a, "--workdir", tmp_path / "other")
    message = f"error: workdir: {tmp_path / 'other'} cannot be joined with {a}: `mean` of its"
    assert code == 2 and output.splitlines()[-1].startswith(message)


@pytest.mark.slow
def test_a_file_is_written_without_its_predictions_in_memory(tmp_path):
    experiment = setup(config_of(size=32, batch=500, evaluators={}))
    predict = Predictor(experiment, experiment.init())
    x = np.tile(load(TEST).x, (160, 1, 1, 1))
    source = experiment.source.with_entries(x=x, y=np.arange(len(x), dtype=np.int32) % K)
    export(predict, Predicted("test", TEST), tmp_path / "compiled")
    tracemalloc.start()
    export(predict, Predicted("test", source), tmp_path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    log_p = np.load(tmp_path / "log_p.npy", mmap_mode="r")
    assert log_p.shape == (32, len(x), K) and peak < log_p.nbytes / 4


def test_joined_features_and_what_is_of_one_run_alone(joined):
    folder, *_ = joined
    runs = {path: open_run(folder / path) for path in "ab"}
    predictors = {p: Predictor(run, restore(run, folder / p)[0]) for p, run in runs.items()}
    both = Predictor.join(predictors)
    phi, y = both.features(TEST)
    each = [p.features(TEST).phi for p in predictors.values()]
    np.testing.assert_array_equal(phi, np.concatenate(each, axis=1))
    assert phi.shape == (N, 2 * D + 5) and len(y) == N
    np.testing.assert_array_equal(both.log_probs(TEST), both(TEST).log_p)
    for call in (lambda: next(both.sown(TEST, "routes")), lambda: both.map(lambda s, b: b, TEST)):
        with pytest.raises(ValueError, match="2 runs are joined"):
            call()


def overflows_later():
    """A kernel [8, 8, 1] whose product with some example after the first 50 is infinite."""
    x = load(TEST).gather(np.arange(N))["x"].reshape(N, D)
    i, j = np.triu_indices(D, 1)
    sums = x[:, i] + x[:, j]
    pair = np.flatnonzero((sums[:50].max(0) < 1.1) & (sums[50:].max(0) > 1.2))[0]
    kernel = np.zeros(D, np.float32)
    kernel[[i[pair], j[pair]]] = 3e38
    return kernel


def test_a_frozen_member_is_left_out_of_all(tmp_path):
    """Its run may freeze; a member of another run is an error. It shows in a later batch alone."""
    runs = {}
    for name, on_fault in (("a", "stop"), ("b", "freeze")):
        experiment = setup(config_of(on_fault=on_fault, size=2, seed=len(runs)))
        runs[name] = Predictor(experiment, experiment.init())
    both = Predictor.join(runs)
    sound = both(TEST).log_p

    def break_first(trained):
        layer = dict(trained.state.params["head"]["logits"])
        kernel = np.array(layer["kernel"])
        kernel[0] = overflows_later().reshape(kernel[0, ..., :1].shape)
        params = {**trained.state.params, "head": {"logits": layer | dict(kernel=kernel)}}
        trained.state = trained.state.replace(params=params)

    break_first(both.runs[1])
    starts = []
    both.over(load(TEST), lambda part, start: starts.append(start))
    assert starts[:2] == [0, 50] and starts[-3:] == [0, 50, 100] and len(starts) > 3
    p = both(TEST)
    np.testing.assert_array_equal(p.log_p, sound[[0, 1, 3]])
    assert p.run.tolist() == [0, 0, 1]
    export(both, Predicted("test", TEST), tmp_path)
    np.testing.assert_array_equal(np.load(tmp_path / "log_p.npy"), p.log_p)
    break_first(both.runs[0])
    with pytest.raises(FloatingPointError, match="member 0, 2 are not finite"):
        both(TEST)


DIFFERENT = {
    "classes": dict(
        train=dict(name="digits", classes=(0, 1)),
        head=dict(name="dense.Dense", outputs=2),
        evaluators={},
    ),
    "mean": dict(train=dict(TEST, split="train", mean=0.5), evaluators={}),
    "task": dict(
        train=dict(name="diabetes"),
        likelihood=dict(name="gaussian"),
        head=dict(name="dense.Dense", outputs=1),
        evaluators={},
    ),
}


@pytest.mark.parametrize("field", DIFFERENT)
def test_runs_that_cannot_be_joined_are_named_with_what_differs(linear, field):
    experiment = setup(config_of(**DIFFERENT[field]))
    runs = dict(a=Predictor(linear.experiment, None), b=Predictor(experiment, None))
    with pytest.raises(ConfigError, match=f"workdir: b cannot be joined with a: `{field}`"):
        Predictor.join(runs)


def test_results_of_several_runs_have_a_place_of_their_own(joined, tmp_path):
    folder, *_ = joined
    a, b = folder / "a", folder / "b"
    assert place(a, None, None, None, [b]) == "test-with-b"
    assert place(a, "both", None, None, [b]) == "both"
    assert place(a, None, None, None, [folder]) == f"test-with-{folder.name}"  # not '..'
    for others in ([], [tmp_path]):
        with pytest.raises(ConfigError, match="has results of other data or runs"):
            place(a, "both", None, None, others)


@pytest.mark.slow
def test_scores_of_targets_are_those_of_the_evaluation(tmp_path):
    """Targets that are standardised in training are stored as the data set has them."""
    data = dict(name="diabetes", split="test")
    spec = dict(
        train=dict(name="diabetes"),
        likelihood=dict(name="gaussian", noise_std=0.0),
        head=dict(name="mean_variance.MeanVariance", outputs=1),
        evaluators=dict(test=dict(name="regression", data=data)),
    )
    for name, seed in (("a", 0), ("b", 1)):
        made(tmp_path / name, seed=seed, **spec)
    others = {tmp_path / "b": open_run(tmp_path / "b")}
    experiment = open_run(tmp_path / "a")
    found, failures = evaluate(
        experiment, tmp_path / "a", others=others, name="both", show=False, predictions=True
    )
    assert not failures
    path = tmp_path / "a" / "evaluation" / "both" / "predictions.npz"
    with np.load(path) as file:
        mean, y = file["mean"], file["y"]
    assert mean.shape[0] == 4 and len({*mean[:, 0, 0]}) == 4
    stored = load(dict(data, standardise=False)).y
    np.testing.assert_allclose(y.ravel(), stored.ravel(), rtol=1e-5)
    (scored,) = score(read(str(path)), "both", Options())
    assert scored.metrics == {k: v for k, v in found.items() if not k.startswith("cost/")}
