"""What follows training: done once, the same on 1 and 8 devices, and never on an old checkpoint."""

import contextlib
import functools
import logging
import shutil
import signal

import jax
import numpy as np
import pytest

from experiments import stage
from experiments.evaluate import evaluate, restore
from experiments.experiment import config as config_lib
from experiments.experiment import inherit
from experiments.experiment.build import setup
from experiments.runtime.checkpoint import Checkpoints, of_training
from experiments.runtime.loop import ParticleFault
from experiments.runtime.termination import Interrupted
from experiments.runtime.workdir import read_config, read_json, write_json
from experiments.runtime.writers import METRICS, read_metrics, without_timing
from experiments.train import train
from uncertainty import build
from uncertainty.build import ConfigError

FIELDS = {
    "steps": 20,
    "backbone.widths": (16,),
    "head": dict(name="sngp.Sngp", outputs=8, features=32),
    "stages": (dict(name="laplace"),),
    "evaluation.batch_size": 96,  # does not divide the 955 training digits
    "evaluation.every": 0,
    "evaluators": {
        "test": dict(
            name="classification", data=dict(name="digits", split="test", classes=tuple(range(8)))
        )
    },
    "optimiser": dict(name="sgd", learning_rate=0.1),
    "mesh": {"data": 1},
}


def config(**changes):
    return config_lib.load("configs/digits/mlp.py:size=2", {**FIELDS, **changes})


def run(workdir, **changes):
    experiment = train(config(**changes), workdir)
    stage.run(experiment, workdir)
    return experiment


@pytest.fixture(scope="module")
def sngp(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("stage") / "run"
    return run(workdir), workdir


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Four networks after twenty steps."""
    changes = dict(head=dict(name="dense.Dense", outputs=8), stages=(), evaluators={})
    changes |= {"inference.size": 4, "inference.executor": "vmap", "checkpoint.every": 4}
    workdir = tmp_path_factory.mktemp("plain") / "run"
    train(config(**changes), workdir)
    return changes, workdir


def factors(experiment, workdir):
    state, _ = restore(experiment, workdir)
    (factor,) = jax.tree.leaves(state.collections["precision"])
    return np.asarray(factor, np.float64)


@pytest.mark.slow
def test_the_precision_is_that_of_every_example_once(sngp):
    experiment, workdir = sngp
    state, _ = restore(experiment, workdir)
    source = experiment.source
    assert len(source) % 96  # a last batch that is smaller
    x = source.gather(np.arange(len(source)))["x"].reshape(len(source), -1).astype(np.float64)
    for p in range(2):
        take = jax.tree.map(
            lambda a, p=p: np.asarray(a[p], np.float64),
            (state.params["backbone"]["dense0"], state.collections["random_features"]["head"]),
        )
        h = np.maximum(x @ take[0]["kernel"] + take[0]["bias"], 0)
        h = (h - h.mean(1, keepdims=True)) / np.sqrt(h.var(1, keepdims=True) + 1e-6)
        W, b = take[1]["features"]["kernel"], take[1]["features"]["bias"]
        phi = np.sqrt(2 / 32) * np.cos(h @ W / np.sqrt(16 / 2) + b)
        F = factors(experiment, workdir)[p]
        exact = np.linalg.inv(np.eye(32) + phi.T @ phi)
        np.testing.assert_allclose(F.T @ F, exact, rtol=2e-3, atol=2e-5)


@pytest.mark.slow
def test_eight_devices_give_the_precision_of_one(sngp, tmp_path):
    experiment, workdir = sngp
    shutil.copytree(workdir / "checkpoints", tmp_path / "checkpoints")
    many = setup(config(mesh=dict(particle=2, data=4)))
    stage.run(many, tmp_path)
    np.testing.assert_allclose(
        factors(many, tmp_path), factors(experiment, workdir), rtol=2e-4, atol=1e-5
    )


@pytest.mark.slow
def test_it_runs_once_and_again_when_its_result_is_damaged(sngp, tmp_path, monkeypatch, caplog):
    """Not from what another version left half finished; interrupted, to the same sums."""
    experiment, workdir = sngp
    shutil.copytree(workdir, tmp_path / "run")
    with caplog.at_level(logging.INFO):
        stage.run(experiment, tmp_path / "run")
    assert "stage laplace" not in caplog.text
    stages = tmp_path / "run" / "stages"
    step = stages / "checkpoints" / "20"
    largest = max((p for p in step.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-8] + b"damaged!")
    state, _ = Checkpoints(workdir, read_only=True).restore(experiment.shapes)
    half = Checkpoints(stages / "half" / "20-0-laplace-96", config=experiment.config)
    with contextlib.closing(half):
        half.save(3, state)  # no carry
    runs = Interruptions(monkeypatch, (5, signal.SIGTERM))
    with pytest.raises(Interrupted, match=r"laplace stopped by SIGTERM at step 6 of 10; saved"):
        stage.run(experiment, tmp_path / "run")
    assert "run again" in caplog.text
    assert "stage laplace starts from its first step" in caplog.text
    assert not step.exists()
    stage.run(experiment, tmp_path / "run")
    assert runs.done == [0, 6]
    np.testing.assert_array_equal(
        factors(experiment, tmp_path / "run"), factors(experiment, workdir)
    )


@pytest.mark.slow
def test_a_pass_that_resumes_with_another_batch_size_has_every_example_once(
    sngp, tmp_path, monkeypatch
):
    experiment, workdir = sngp
    shutil.copytree(workdir / "checkpoints", tmp_path / "checkpoints")
    runs = Interruptions(monkeypatch, (5, signal.SIGTERM))
    with pytest.raises(Interrupted, match=r"laplace stopped by SIGTERM at step 6 of 10; saved"):
        stage.run(experiment, tmp_path)
    larger = setup(config(**{"evaluation.batch_size": 192}))  # 5 batches, of which 6 are not done
    stage.run(larger, tmp_path)
    assert runs.done == [0, 0]
    np.testing.assert_allclose(
        factors(larger, tmp_path), factors(experiment, workdir), rtol=2e-4, atol=1e-5
    )


@pytest.mark.slow
def test_evaluation_refuses_a_run_whose_stages_are_missing_or_old(sngp, tmp_path):
    experiment, workdir = sngp
    shutil.copytree(workdir, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "stages")
    with pytest.raises(ConfigError, match=r"not run at step 20; run python -m experiments.stage"):
        evaluate(experiment, tmp_path / "run", show=False)
    metrics, failures = evaluate(experiment, workdir, show=False)
    assert not failures and metrics["classification/accuracy"] > 0.2


@pytest.mark.slow
def test_a_damaged_checkpoint_is_skipped_by_stages_and_evaluation_alike(sngp, tmp_path, caplog):
    """The step before it is evaluated, once the stages have run there."""
    experiment, workdir = sngp
    run = shutil.copytree(workdir, tmp_path / "run")
    state, _ = Checkpoints(run, read_only=True).restore(experiment.shapes)
    newest = Checkpoints(run, config=of_training(experiment.config))
    with contextlib.closing(newest):
        newest.save(30, state.replace(step=state.step + 10))
    leaves = run / "checkpoints" / "30" / "leaves.json"
    leaves.write_text(leaves.read_text() + " ")
    shutil.rmtree(run / "stages")
    with pytest.raises(ConfigError, match=r"not run at step 20; run python -m experiments.stage"):
        restore(experiment, run)
    stage.run(experiment, run)
    after, step = restore(experiment, run)
    assert step == 20 and "the checkpoint of step 30 is damaged" in caplog.text
    expected, _ = restore(experiment, workdir)
    jax.tree.map(np.testing.assert_array_equal, after.params, expected.params)
    np.testing.assert_array_equal(factors(experiment, run), factors(experiment, workdir))
    with caplog.at_level(logging.INFO):
        caplog.clear()
        stage.run(experiment, run)
    assert "stage laplace" not in caplog.text  # they have run


@pytest.mark.slow
def test_a_trained_run_gets_a_laplace_posterior_afterwards(plain, tmp_path):
    """The same command goes on with it, and is refused where the start has other parameters."""
    start, new = plain[1], tmp_path / "new"
    sets = dict(held_out=dict(name="digits", classes=(8, 9)))
    ood = dict(name="ood", data=dict(split="test"), sets=sets)
    changes = {"head.name": "laplace.Laplace", "stages": [dict(name="laplace")]}
    changes["evaluators"] = dict(ood=ood)
    stage.begin_from(start, new, changes)
    experiment = stage.begin_from(start, new, changes)
    stage.run(experiment, new)
    old = setup(read_config(start))
    there, step = Checkpoints(start, read_only=True).restore(old.shapes)
    here, same_step = restore(experiment, new)
    assert step == same_step
    jax.tree.map(np.testing.assert_array_equal, here.params, there.params)
    x = experiment.source.gather(np.arange(20))["x"]
    before, after = (
        jax.jit(e.inference.predict)(state, x) for e, state in ((old, there), (experiment, here))
    )
    np.testing.assert_array_equal(after.mean, before.mean)
    assert before.variance is None and after.variance.shape == (4, 20, 8)
    metrics, failures = evaluate(experiment, new, show=False)
    assert not failures and metrics["cost/train_seconds"] > 0
    assert "ood/held_out/auroc_epistemic_variance" in metrics

    shutil.copytree(start, tmp_path / "other")
    shutil.rmtree(tmp_path / "other" / "checkpoints" / str(step))
    other = there.replace(params=jax.tree.map(lambda a: 2 * np.asarray(a), there.params))
    with contextlib.closing(Checkpoints(tmp_path / "other")) as checkpoints:
        checkpoints.save(step, other)
    with pytest.raises(ConfigError, match="has other parameters than"):
        stage.begin_from(tmp_path / "other", new, changes)


@pytest.mark.slow
def test_samples_of_the_start_come_along(plain, tmp_path):
    changes = plain[0] | {"inference.collect": dict(name="after_burn_in", size=2)}
    # One device reads it, whatever trained it.
    train(config(**changes, steps=6, mesh={"particle": 2, "data": 4}), tmp_path / "old")
    chosen = {"stages": [dict(name="select", size=2)], "mesh": {"data": 1}}
    experiment = stage.begin_from(tmp_path / "old", tmp_path / "new", chosen)
    former = Checkpoints(tmp_path / "new", read_only=True).restore(experiment.shapes)[0]
    assert former.samples.taken.all()
    assert not np.array_equal(*jax.tree.leaves(former.samples.params)[0].swapaxes(0, 1))
    stage.run(experiment, tmp_path / "new")
    kept = restore(experiment, tmp_path / "new")[0].samples
    assert kept.taken.shape == (2, 2) and kept.taken.all()
    for a, b in zip(
        jax.tree.leaves(kept.params), jax.tree.leaves(former.samples.params), strict=True
    ):
        assert all(any(np.array_equal(one, old) for old in b) for one in a)
    with pytest.raises(ConfigError, match="has 0 samples of each particle, the new config 2"):
        collect = {"inference.collect": dict(name="after_burn_in", size=2)}
        stage.begin_from(plain[1], tmp_path / "none", collect)


@pytest.mark.slow
def test_collections_of_other_shapes_are_refused():
    """Parameters belong to the masks or random features beside them; counts are of a step."""
    here = dict(
        masks=dict(backbone=dict(mask=np.zeros((2, 4, 8)))),
        routing=dict(load=np.zeros((2, 4))),
        more=dict(a=np.zeros(2)),
    )
    there = dict(masks=dict(backbone=dict(mask=np.ones((2, 4, 8)))), routing=dict(load=np.ones(3)))
    after = inherit._joined("runs/a", {"routing"}, here, there)
    np.testing.assert_array_equal(after["masks"]["backbone"]["mask"], np.ones((2, 4, 8)))
    np.testing.assert_array_equal(after["routing"]["load"], np.zeros((2, 4)))
    np.testing.assert_array_equal(after["more"]["a"], np.zeros(2))
    there["masks"]["backbone"]["mask"] = np.ones((2, 3, 8))
    with pytest.raises(
        ConfigError,
        match=r"start: collections of runs/a .*\n  masks/backbone/mask: \(2, 3, 8\) -> \(2, 4, 8\)",
    ):
        inherit._joined("runs/a", {"routing"}, here, there)


def test_a_start_with_other_parameters_is_refused(plain, tmp_path):
    with pytest.raises(ConfigError, match=r"head/diagonal/bias: None -> \(4, 8\)"):
        stage.begin_from(plain[1], tmp_path, {"head.name": "heteroscedastic.Heteroscedastic"})
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"head": dict(name="dense.Dense", outputs=8)}, r"stages\[0\]: laplace: .* no post"),
        ({"stages": (dict(name="laplas"),)}, r"stages\[0\].name: no file 'laplas'.*'laplace'"),
        ({"stages": "laplace"}, "stages: 'laplace' is not a list"),
        (
            {
                "inference.prior": dict(name="gaussian", rules=[["nope", 1.0]]),
                "optimiser.weight_decay": (),
            },
            r"inference: prior.rules\[0\]: 'nope' matches no parameter",
        ),
        (
            {
                "inference.direction": dict(name="svgd"),
                "on_fault": "freeze",
                "optimiser.weight_decay": (),
            },
            "on_fault: 'freeze'",
        ),
        (
            {"data.streams": dict(context=dict(name="digits"))},
            "data.streams.context: nothing reads it",
        ),
        (
            {
                "inference.direction": dict(
                    name="svgd", space="functions", context=dict(name="other")
                ),
                "optimiser.weight_decay": (),
            },
            "needs a stream 'context'",
        ),
        ({"inference.collect": dict(name="after_burn_in", size=2)}, r"stages\[0\]: .* samples"),
        ({"stages": (dict(name="swag", steps=4, every=1),)}, r"stages\[0\].optimiser: missing"),
        (
            {"stages": (dict(name="swag", steps=4, every=1, optimiser=dict(name="sgd")),)},
            r"stages\[0\].optimiser.learning_rate: missing",
        ),
        (
            {
                "stages": (
                    dict(
                        name="swag", steps=4, every=3, optimiser=dict(name="sgd", learning_rate=1.0)
                    ),
                )
            },
            "every: 3",
        ),
        (
            {
                "head": dict(
                    name="heteroscedastic.Heteroscedastic", outputs=8, mean=dict(name="sngp.Sngb")
                )
            },
            r"head.mean.name: .*did you mean 'Sngp'",
        ),
        (
            {
                "head": dict(
                    name="heteroscedastic.Heteroscedastic",
                    outputs=8,
                    mean=dict(name="sngp.Sngp", feature=3),
                )
            },
            r"head.mean.feature: no such field; did you mean 'features'",
        ),
        ({"head": dict(name="sngp.Sngp", outputs=8, momentum=0.9)}, "head: num_examples: None"),
        (
            {
                "head": dict(
                    name="heteroscedastic.Heteroscedastic",
                    outputs=8,
                    mean=dict(name="sngp.Sngp", noise=-1.0),
                )
            },
            "noise: -1.0",
        ),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)
def test_what_cannot_be_is_refused_before_anything_is_compiled(changes, why):
    with pytest.raises(ConfigError, match=why):
        setup(config(**changes))


@pytest.mark.parametrize(
    ("fields", "noise_std", "why"),
    [
        (dict(noise=1.0), 0.25, r"head.noise: 1.0, but likelihood.noise_std\^2 is 0.0625"),
        (dict(noise=0.0625), 0.0, r"noise_std\^2 is 0;.*above 0"),
        (dict(noise=0.0625, curvature="softmax"), 0.25, "head.curvature: 'softmax'"),
        (dict(noise=0.0625), 0.25, None),
    ],
)
def test_the_noise_of_a_regression_is_one_number(fields, noise_std, why):
    changed = config_lib.load("configs/toys/regression.py:method=gp", {"mesh": {"data": 1}})
    changed.head.update(fields)
    changed.likelihood.noise_std = noise_std
    if why is None:
        setup(changed)
    else:
        with pytest.raises(ConfigError, match=why):
            setup(changed)


@pytest.mark.slow
def test_a_posterior_that_nothing_fits_is_warned_of(caplog):
    """And the posterior of a stage or a moving average is not."""
    setup(config(stages=()))
    assert "predictions have no variance" in caplog.text
    caplog.clear()
    setup(config())
    head = dict(FIELDS["head"], momentum=0.9)
    setup(config(head=head | dict(num_examples=955), stages=()))
    assert "no variance" not in caplog.text and "num_examples" not in caplog.text
    setup(config(head=head | dict(num_examples=1200), stages=()))
    assert "head.num_examples: 1200, but the training examples are 955" in caplog.text


PATHS = {  # stages that train, then ones that make another pass
    "snapshots": dict(
        steps=9,
        size=3,
        cycles=3,
        optimiser=dict(
            name="sgd", learning_rate=0.05, momentum=0.9, schedule=dict(name="cyclical", cycles=3)
        ),
    ),
    "swag": dict(steps=9, every=2, samples=3, optimiser=dict(name="sgd", learning_rate=0.02)),
}


def following(plain, name, **fields):
    """The experiment whose stage follows the plain training."""
    return setup(config(**{**plain[0], "stages": (dict(PATHS[name], name=name),), **fields}))


@pytest.fixture(scope="module")
def whole(plain, tmp_path_factory):
    """name -> a stage that nothing interrupted, on one device, and its workdir."""

    @functools.cache
    def done(name):
        experiment = following(plain, name, **{"logging.every": 1})
        workdir = shutil.copytree(plain[1], tmp_path_factory.mktemp(name) / "run")
        stage.run(experiment, workdir)
        return experiment, workdir

    return done


def samples(experiment, workdir):
    state, _ = restore(experiment, workdir)
    return jax.tree.map(np.asarray, (state.params, state.samples.params))


class Interruptions:
    """Ends the streams of a stage in turn, each after a number of batches; the last goes on."""

    def __init__(self, monkeypatch, *ends):
        self.ends, self.done = [*ends], []  # (batches, signal or None); steps that each began after
        examples = stage.examples

        def interrupted(*args):
            total, stream = examples(*args)
            self.done.append(args[-1])
            return total, Stopped(stream, *self.ends.pop(0)) if self.ends else stream

        monkeypatch.setattr(stage, "examples", interrupted)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "number", "error", "step"),
    [
        ("snapshots", signal.SIGTERM, "snapshots stopped by SIGTERM at step 6 of 9; saved", 6),
        ("swag", None, None, 4),  # the last step that was saved
    ],
)
def test_a_stage_that_was_interrupted_resumes_to_the_same_end(
    plain, whole, tmp_path, monkeypatch, name, number, error, step
):
    experiment, uninterrupted = whole(name)
    run = shutil.copytree(plain[1], tmp_path / "run")
    runs = Interruptions(monkeypatch, (5, number))
    with pytest.raises((Interrupted, KeyboardInterrupt), match=error):
        stage.run(experiment, run)
    stage.run(experiment, run)
    assert runs.done == [0, step]
    assert not (run / "stages" / "half").exists()
    both = [samples(experiment, folder) for folder in (uninterrupted, run)]
    jax.tree.map(np.testing.assert_array_equal, *both)
    # Its records come after those of training, in steps of the whole run.
    records = [without_timing(read_metrics(folder / METRICS)) for folder in (uninterrupted, run)]
    assert records[0] == records[1]
    own = [r for r in records[0] if r["step"] > 20]
    assert [r["step"] for r in own] == list(range(21, 30))
    rates = [r[f"{name}/learning_rate"] for r in own]
    of_config = build.schedule(dict(optimiser=PATHS[name]["optimiser"], steps=9))
    np.testing.assert_allclose(rates, [of_config(i) for i in range(9)], rtol=1e-6)
    for record in own:
        losses = [record[f"{name}/loss/{m}"] for m in range(4)]
        np.testing.assert_allclose(record[f"{name}/loss"], np.mean(losses), rtol=1e-6)
    assert read_metrics(run / METRICS, 20) == read_metrics(plain[1] / METRICS)


class Stopped:
    """A stream that ends as Ctrl-C would end it, or goes on after a signal."""

    def __init__(self, stream, after, number=None):
        self.stream, self.left, self.number = stream, after, number

    def __enter__(self):
        self.stream.__enter__()
        return self

    def __exit__(self, *error):
        return self.stream.__exit__(*error)

    def __next__(self):
        self.left -= 1
        if self.left < 0 and self.number is None:
            raise KeyboardInterrupt
        if self.left == -1:
            signal.raise_signal(self.number)
        return next(self.stream)


@pytest.mark.slow
@pytest.mark.parametrize("name", PATHS)
def test_a_stage_that_trains_is_the_same_on_eight_devices(plain, whole, tmp_path, name):
    shutil.copytree(plain[1] / "checkpoints", tmp_path / "checkpoints")
    many = following(plain, name, mesh=dict(particle=2, data=4))
    stage.run(many, tmp_path)
    found = samples(*whole(name)), samples(many, tmp_path)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5), *found)


@pytest.mark.slow
def test_a_stage_whose_steps_are_not_finite_stops(plain, tmp_path):
    changes, workdir = plain
    wild = dict(PATHS["swag"], name="swag", optimiser=dict(name="sgd", learning_rate=1e38))
    shutil.copytree(workdir / "checkpoints", tmp_path / "checkpoints")
    with pytest.raises(ParticleFault, match=r"^particle 0: .* not finite at step \d of swag\. Low"):
        stage.run(setup(config(**{**changes, "stages": (wild,)})), tmp_path)


@pytest.mark.slow
def test_a_particle_freezes_in_a_stage_and_the_others_do_not_notice(plain, whole, tmp_path, caplog):
    experiment = following(plain, "snapshots", on_fault="freeze")
    state, step = Checkpoints(plain[1], read_only=True).restore(experiment.shapes)
    params = jax.tree.map(lambda a: a.at[2].set(np.nan), state.params)
    with contextlib.closing(Checkpoints(tmp_path)) as checkpoints:
        checkpoints.save(step, state.replace(params=params))
    stage.run(experiment, tmp_path)
    (warning,) = [m for m in caplog.messages if m.startswith("particle")]
    assert warning.startswith("particle 2: ") and "at step 1 of snapshots;" in warning
    others = np.array([0, 1, 3])
    found = samples(*whole("snapshots")), samples(experiment, tmp_path)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[others], b[others]), *found)


@pytest.mark.slow
def test_hyper_deep_ensemble_by_config(plain, tmp_path):
    """Networks with priors of their own, of which validation data choose some, with repetition."""
    changes, _ = plain
    changes = changes | {
        "inference.prior": dict(name="gaussian", scale=1.0),
        "inference.hyper": dict(prior_scale=dict(low=0.05, high=2.0), learning_rate=[1.0, 3.0]),
        "stages": (dict(name="select", size=3),),
        "evaluators": FIELDS["evaluators"],
        "optimiser.weight_decay": (),
    }
    experiment = run(tmp_path / "run", **changes)
    metrics, failures = evaluate(experiment, tmp_path / "run", show=False)
    assert not failures and "classification/accuracy" in metrics
    state, _ = restore(experiment, tmp_path / "run")
    before, _ = Checkpoints(tmp_path / "run", read_only=True).restore(experiment.shapes)
    assert state.key.shape == (3,) and before.key.shape == (4,)
    # the choice is the best single network first, and no other first choice would be better
    source = experiment.validation
    batch = source.gather(np.arange(len(source)))
    logits = np.asarray(experiment.inference.predict(before, batch["x"]).mean, np.float64)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    nll = -log_p[:, np.arange(len(source)), batch["y"]].mean(1)
    np.testing.assert_array_equal(
        state.hyper["prior_scale"][0], before.hyper["prior_scale"][nll.argmin()]
    )


@pytest.mark.slow
def test_training_data_that_have_changed_since_are_refused(sngp, plain, tmp_path):
    """By the stages of a run, and by a run that starts from it."""
    experiment, workdir = sngp
    run, start = tmp_path / "run", tmp_path / "start"
    shutil.copytree(workdir, run)
    shutil.rmtree(run / "stages")
    shutil.copytree(plain[1], start)
    for folder in (run, start):
        noted = read_json(folder / "data.json")
        write_json(folder / "data.json", noted | {"digest": "0123abcd"})
    message = r"on other training data .*\n  digest: 0123abcd -> \w+$"
    with pytest.raises(ValueError, match=message):
        stage.run(experiment, run)
    assert not (run / "stages" / "checkpoints").exists()
    laplace = {"head.name": "laplace.Laplace", "stages": [dict(name="laplace")]}
    with pytest.raises(ValueError, match=message):
        stage.begin_from(start, tmp_path / "new", laplace)
    assert not (tmp_path / "new").exists()
    other = laplace | {"data.train.split": "train[:90%]"}  # which says that they are others
    stage.begin_from(start, tmp_path / "new", other)


@pytest.mark.slow
def test_what_is_selected_has_to_share_the_devices(plain):
    changes, _ = plain
    spec = dict(name="select", size=3)
    with pytest.raises(ConfigError, match=r"stages\[0\].size: 3 .*2 devices .*'particle'"):
        setup(config(**{**changes, "stages": (spec,), "mesh": {"particle": 2}}))


@pytest.mark.slow
def test_selection_needs_validation_data(plain, tmp_path):
    changes, _ = plain
    changed = config(**{**changes, "stages": (dict(name="select", size=3),)})
    del changed.data["validation"]
    with pytest.raises(ConfigError, match=r"needs data\.validation"):
        setup(changed)


@pytest.mark.slow
def test_the_command_runs_the_stages_of_a_workdir(sngp, tmp_path, programs):
    _, workdir = sngp
    shutil.copytree(workdir, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "stages")
    result = programs("stage", "--workdir", str(tmp_path / "run"))
    assert result.code == 0, result
    assert (tmp_path / "run" / "stages" / "checkpoints" / "20").is_dir()
    result = programs("stage", "--workdir", str(tmp_path / "run"), "--config.steps=3")
    assert result.code == 2 and "--start" in str(result)
