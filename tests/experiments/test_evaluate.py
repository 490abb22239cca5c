"""Evaluation from a checkpoint, against a forward pass and metrics by hand."""

import functools
import logging
import operator
import re
import shutil

import numpy as np
import pytest
import scipy.special
import scipy.stats
from sklearn.metrics import roc_auc_score

from experiments.data.corruptions import corrupted
from experiments.data.description import read_description
from experiments.data.source import load
from experiments.evaluate import evaluate, open_run, parse_data
from experiments.experiment.base import base
from experiments.experiment.build import setup
from experiments.prediction.predictor import Predictor
from experiments.runtime.checkpoint import Checkpoints
from experiments.runtime.workdir import read_config, read_json, write_json
from experiments.train import train
from uncertainty import metrics
from uncertainty.build import ConfigError

TIMED = ("cost/train_seconds", "cost/train_ms_per_example", "cost/predict_ms_per_example")


def experiment_of(workdir, **changes):
    return setup(read_config(workdir) | changes, read_description(workdir))


def untimed(found):
    return {name: value for name, value in found.items() if name not in TIMED}


def saved(workdir, name="test"):
    return untimed(read_json(workdir / "evaluation" / name / "metrics.json"))


@pytest.fixture(scope="module")
def by_hand(digits):
    """source -> the logits [2, B, 8], by NumPy from the checkpoint's parameters."""
    state, _ = Checkpoints(digits, read_only=True).restore(experiment_of(digits).shapes)
    layers = [
        {name: np.asarray(value, np.float64) for name, value in layer.items()}
        for layer in (
            state.params["backbone"]["dense0"],
            state.params["backbone"]["dense1"],
            state.params["head"]["logits"],
        )
    ]

    def logits(source):
        x = source.gather(np.arange(len(source)))["x"].astype(np.float64)
        members = []
        for p in range(2):
            h = x.reshape(len(x), -1)
            for i, layer in enumerate(layers):
                h = h @ layer["kernel"][p].reshape(h.shape[-1], -1) + layer["bias"][p].ravel()
                h = np.maximum(h, 0) if i < 2 else h
            members.append(h)
        return np.stack(members)

    return logits


@pytest.mark.slow
def test_the_checkpoint_alone_gives_the_same_numbers(digits, programs, tmp_path):
    expected = saved(digits)
    run = shutil.copytree(digits, tmp_path / "run")
    shutil.rmtree(run / "evaluation")
    result = programs("evaluate", "--workdir", run)
    assert result.code == 0, result.output
    assert saved(run) == expected
    with (
        np.load(run / "evaluation" / "test" / "scores.npz") as ours,
        np.load(digits / "evaluation" / "test" / "scores.npz") as theirs,
    ):
        assert set(ours) == set(theirs)
        for name in ours:
            np.testing.assert_array_equal(ours[name], theirs[name])
    assert "Accuracy" in result.output and "AURC" in result.output


def test_classification_is_the_metrics_of_the_predictions(digits, by_hand):
    source = load(dict(name="digits", split="test", classes=range(8)))
    log_p = scipy.special.log_softmax(by_hand(source), axis=-1)
    y = source.y
    expected = metrics.evaluate_classification(log_p, y)
    found = saved(digits)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-6, err_msg=name)
    p = np.exp(log_p).mean(axis=0)
    np.testing.assert_allclose(found["classification/accuracy"], np.mean(p.argmax(-1) == y))
    nll = -np.mean(np.log(p[np.arange(len(y)), y]))
    np.testing.assert_allclose(found["classification/nll"], nll, rtol=1e-4)
    with np.load(digits / "evaluation" / "test" / "scores.npz") as scores:
        np.testing.assert_allclose(scores["test/confidence"], p.max(-1), rtol=1e-4)
        np.testing.assert_array_equal(scores["test/label"], y)


def test_corruption_is_the_metrics_of_corrupted_inputs(digits, by_hand):
    found, clean = saved(digits), load(dict(name="digits", split="test", classes=range(8)))
    log_p = scipy.special.log_softmax(by_hand(corrupted(clean, "gaussian_blur", 3)), axis=-1)
    p = np.exp(log_p).mean(axis=0)
    accuracy = np.mean(p.argmax(-1) == clean.y)
    np.testing.assert_allclose(found["corruption/gaussian_blur/3/accuracy"], accuracy)
    nll = -np.mean(np.log(p[np.arange(len(clean.y)), clean.y]))
    np.testing.assert_allclose(found["corruption/gaussian_blur/3/nll"], nll, rtol=1e-4)
    for metric in ("accuracy", "nll", "ece"):
        each = [
            v
            for k, v in found.items()
            if k.startswith("corruption/") and k.count("/") == 3 and k.endswith(f"/{metric}")
        ]
        assert len(each) == 8 * 5
        np.testing.assert_allclose(found[f"corruption/{metric}"], np.mean(each))


def test_ood_ranks_the_uncertainty(digits, by_hand):
    found = saved(digits)
    inside = load(dict(name="digits", split="test", classes=range(8)))
    outside = load(dict(name="digits", split="train+validation+test", classes=(8, 9)))
    scores = []
    for source in (inside, outside):
        p = scipy.special.softmax(by_hand(source), axis=-1).mean(axis=0)
        scores.append(dict(entropy=scipy.stats.entropy(p, axis=-1), max_probability=-p.max(-1)))
    is_outside = np.repeat([0, 1], [len(inside), len(outside)])
    for name in scores[0]:
        both = np.concatenate([s[name] for s in scores])
        expected = roc_auc_score(is_outside, both)
        np.testing.assert_allclose(found[f"ood/held_out/auroc_{name}"], expected, atol=1e-4)


@pytest.mark.slow
def test_other_data(digits, programs):
    """By name and split, with the training data's classes; and as a dict with fields of its own."""
    result = programs("evaluate", "--workdir", digits, "--data", "digits:validation")
    assert result.code == 0, result.output
    spec = "{'name': 'digits', 'split': 'validation', 'classes': (0, 1, 2, 3, 4, 5, 6, 7)}"
    result = programs("evaluate", "--workdir", digits, "--data", spec, "--name", "as_dict")
    assert result.code == 0, result.output
    one, other = saved(digits, "digits-validation"), saved(digits, "as_dict")
    assert one == other != saved(digits)
    validation = load(dict(name="digits", split="validation", classes=range(8)))
    experiment = experiment_of(digits)
    state, _ = Checkpoints(digits, read_only=True).restore(experiment.shapes)
    log_p = Predictor(experiment, state)(validation).log_p
    expected = metrics.evaluate_classification(log_p, validation.y)
    assert {name: one[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "digts"], "error: --data.name: no data set 'digts'; did you mean 'digits'"),
        (["--data", "digits:tst"], "error: --data.split: 'tst' does not exist"),
        (["--data", "{'nme': 1}"], "error: --data.name: None is not a name"),
        (["--data", "{'name': 'npz', 'path': '/no/file'}"], "error: --data.path: there is no file"),
        (["--data", "{'name': "], "error: --data: \"{'name': \" is not a dict"),
        (["--data", "iris"], "error: --data: iris[train]: inputs of shape (4,), but the model"),
        (["--data", "{'name':'digits'}"], "error: --data.classes: digits[train] has 10 classes"),
        (["--data", "diabetes"], "error: --data: diabetes[train]: inputs of shape (10,), but"),
        (["--data", ""], "error: --data: ''; NAME, NAME:SPLIT, or a dict of fields"),
        (["--name", "../../x"], "error: --name: '../../x'; use letters, digits"),
        (["--data", "digits", "--name", "test"], "error: --name: 'test' has results of other"),
        (["extra"], "error: unexpected arguments ['extra']"),
    ],
)
def test_other_data_that_does_not_fit(digits, programs, arguments, message):
    before = set((digits / "evaluation").iterdir())
    result = programs("evaluate", "--workdir", digits, *arguments)
    assert result.code == 2
    assert result.output.splitlines()[-1].startswith(message), result.output
    assert set((digits / "evaluation").iterdir()) == before


def test_a_workdir_without_a_run(programs, tmp_path, digits):
    result = programs("evaluate", "--workdir", tmp_path)
    assert result.code == 2 and "is not a run's workdir: it has no config.json" in result.output
    shutil.copy(digits / "config.json", tmp_path)
    result = programs("evaluate", "--workdir", tmp_path)
    assert result.code == 2
    assert result.output == f"error: workdir: {tmp_path} has no checkpoint to evaluate\n"


def test_a_name_is_the_training_data_or_another_set():
    train = dict(name="digits", split="train", classes=(1, 2))
    assert parse_data("digits:test", train) == dict(name="digits", split="test", classes=(1, 2))
    assert parse_data("digits", train) == train
    assert parse_data("iris:test[:50%]", train) == dict(name="iris", split="test[:50%]")
    assert parse_data('{"name": "npz", "path": "a:b"}', train) == dict(name="npz", path="a:b")
    assert parse_data('{"name": "npz", "a": true}', train) == dict(name="npz", a=True)
    assert parse_data("{'name': 'npz', 'a': None}", train) == dict(name="npz", a=None)
    assert parse_data("{'split': 'test'}", train) == train | dict(split="test")
    for text in ("{name}", "{1, 2}"):
        with pytest.raises(ConfigError, match="--data"):
            parse_data(text, train)


@pytest.mark.parametrize("batch_size", [7, 1000])
def test_the_batch_size_of_evaluation_changes_no_number(digits, batch_size):
    experiment = experiment_of(digits, evaluation=dict(batch_size=batch_size, every=0))
    state, _ = Checkpoints(digits, read_only=True).restore(experiment.shapes)
    p = Predictor(experiment, state)(dict(name="digits", split="test", classes=range(8)))
    expected = saved(digits)["classification/nll"]
    np.testing.assert_allclose(
        metrics.evaluate_classification(p.log_p, p.y)["classification/nll"], expected, rtol=1e-5
    )


@pytest.mark.slow
def test_a_missing_set_is_reported_and_the_others_are_done(digits, tmp_path, caplog):
    run = shutil.copytree(digits, tmp_path / "run")
    expected = saved(run)
    experiment = experiment_of(run)
    sets = experiment.config["evaluators"]["ood"]["sets"]
    sets["elsewhere"] = dict(name="npz", path="/no/file.npz")
    experiment.config["evaluators"]["ood"]["sets"] = {"elsewhere": sets.pop("elsewhere"), **sets}
    with caplog.at_level(logging.ERROR):
        found, failures = evaluate(
            experiment, run, show=False, specs=experiment.config["evaluators"]
        )
    (reason,) = failures.values()
    assert list(failures) == ["ood"] and "elsewhere: data.path: there is no file" in reason
    assert any("evaluator ood: elsewhere" in r.getMessage() for r in caplog.records)
    assert untimed(found) == expected == saved(run)


@pytest.mark.slow
def test_the_programs_say_that_an_evaluator_failed(programs, digits, tmp_path):
    run = shutil.copytree(digits, tmp_path / "run")
    config = read_config(run)
    config["evaluators"]["ood"]["sets"]["noise"] = dict(name="npz", path="/no/file")
    write_json(run / "config.json", config)
    result = programs("evaluate", "--workdir", run)
    assert result.code == 2
    assert result.output.splitlines()[-1].startswith("error: 1 failed: ood: noise: data.path")
    kept = {name: v for name, v in saved(digits).items() if not name.startswith("ood/noise")}
    assert saved(run) == kept


@pytest.mark.slow
def test_what_cannot_be_saved_is_printed(programs, digits, tmp_path):
    run = shutil.copytree(digits, tmp_path / "run", ignore=shutil.ignore_patterns("evaluation"))
    (run / "evaluation").write_text("in the way")
    code, output = programs("evaluate", "--workdir", run)
    assert code == 2 and "Traceback" not in output
    assert re.search(r"Accuracy +[\d.]+", output), output
    assert output.splitlines()[-1].startswith(f"error: could not write {run}/evaluation/test: ")


DAMAGED = [
    ("config.json", "{", "is not valid JSON"),
    ("config.json", "[]", "is damaged: it is [], not a dict"),
    ("config.json", "{}", "config.backbone: missing"),
    ("config.json", '{"batch_size": "x"}', "config."),
    ("data.json", "[" * 100_000, "is not valid JSON"),
    (
        "data.json",
        '{"name": "digits", "shape": "8 x 8", "classes": 8, "outputs": 8}',
        "shape is '8 x 8', not a list",
    ),
]


@pytest.mark.parametrize("file, content, message", DAMAGED, ids=range(len(DAMAGED)))
def test_a_damaged_file_is_named_in_one_line(digits, tmp_path, file, content, message):
    for name in ("config.json", "data.json"):
        shutil.copy(digits / name, tmp_path / name)
    (tmp_path / file).write_text(content)
    with pytest.raises(ValueError, match=re.escape(str(tmp_path / file))) as error:
        open_run(tmp_path)
    assert message in str(error.value) and len(str(error.value).splitlines()) == 1


JUNK = [5, "x", [1, {"a": 2}], {"name": 5}, 1e300]
FIELDS = [
    "batch_size",
    "data",
    "evaluation",
    "inference",
    "backbone",
    "stages",
    "head.outputs",
    "optimiser.name",
    "evaluators",
    "likelihood",
]


@pytest.mark.slow
@pytest.mark.parametrize("field", FIELDS)
def test_junk_in_the_config_is_an_error_with_its_file(digits, tmp_path, field):
    shutil.copy(digits / "data.json", tmp_path)
    for junk in JUNK:
        if (field, junk) in (("batch_size", 5), ("head.outputs", 5)):
            continue  # as good as any, or refused for the data
        config = read_json(digits / "config.json")
        *parents, last = field.split(".")
        functools.reduce(operator.getitem, parents, config)[last] = junk
        write_json(tmp_path / "config.json", config)
        with pytest.raises(ValueError, match=re.escape(str(tmp_path / "config.json"))):
            open_run(tmp_path)


def test_damaged_records_leave_the_metrics(digits, tmp_path):
    run = shutil.copytree(digits, tmp_path / "run")
    (run / "metrics.jsonl").write_text("damaged\n")
    experiment = experiment_of(run)
    specs = {"test": experiment.config["evaluators"]["test"]}
    found, failures = evaluate(experiment, run, specs=specs, show=False)
    assert "metrics.jsonl line 1 is not a record" in failures.pop("cost") and not failures
    assert "classification/nll" in found


@pytest.mark.slow
def test_without_the_training_data(programs, tmp_path):
    """The checkpoint's folder and the data to evaluate on are all that is needed."""
    rng = np.random.default_rng(0)
    y = np.arange(60) % 3
    x = (rng.normal(size=(60, 4)) + 3 * np.eye(4)[y]).astype(np.float32)
    for name in ("train", "other"):
        np.savez(tmp_path / f"{name}.npz", x=x, y=y)
    config = base()
    config.data.train = dict(name="npz", path=str(tmp_path / "train.npz"))
    config.batch_size, config.steps, config.mesh = 20, 60, dict(data=1)
    config.backbone, config.head.outputs = dict(name="mlp.MLP", widths=(8,)), 3
    config.optimiser.learning_rate = 0.05
    train(config, tmp_path / "run")
    (tmp_path / "train.npz").unlink()
    spec = str(dict(name="npz", path=str(tmp_path / "other.npz")))
    result = programs("evaluate", "--workdir", tmp_path / "run", "--data", spec, devices=3)
    assert result.code == 0, result.output  # 2 of 3 devices, which divide the batches
    assert saved(tmp_path / "run", "npz-other")["classification/accuracy"] > 0.9


@pytest.fixture(scope="module")
def line(tmp_path_factory):
    """Two networks with a mean and a variance each, on a line with noise."""
    config = base()
    config.data.train = dict(name="cubic")
    config.batch_size, config.steps, config.mesh = 20, 20, dict(data=1)
    config.backbone = dict(name="mlp.MLP", widths=(8,))
    config.head = dict(name="mean_variance.MeanVariance", outputs=1)
    config.likelihood = dict(name="gaussian", noise_std=0.0)
    config.inference.size = 2
    config.evaluation.batch_size = 50
    config.evaluators = dict(test=dict(name="regression", data=dict(name="cubic", split="test")))
    workdir = tmp_path_factory.mktemp("line") / "run"
    experiment = train(config, workdir)
    return evaluate(experiment, workdir, show=False), workdir


@pytest.mark.slow
def test_regression_is_a_mixture_of_gaussians(line):
    (found, failures), workdir = line
    assert not failures
    with np.load(workdir / "evaluation" / "test" / "scores.npz") as scores:
        mean, variance, y = (scores[f"test/{k}"] for k in ("mean", "variance", "y"))
    assert mean.shape == variance.shape == (2, 20, 1)
    np.testing.assert_array_equal(y, load(dict(name="cubic", split="test")).y)
    log_p = scipy.stats.norm(mean, np.sqrt(variance)).logpdf(y[None])
    nll = -np.mean(scipy.special.logsumexp(log_p, axis=0) - np.log(2))
    np.testing.assert_allclose(found["regression/nll"], nll, rtol=1e-5)
    rmse = np.sqrt(np.mean((mean.mean(0) - y) ** 2))
    np.testing.assert_allclose(found["regression/rmse"], rmse, rtol=1e-5)
