"""Data that a run is evaluated on: read as its training data were, checked before it trains."""

import logging

import jax
import numpy as np
import pytest

from configs.tabular import breast_cancer, diabetes
from experiments.data.derived import parts_of_one
from experiments.data.description import describe, read_description, write_description
from experiments.data.source import load
from experiments.evaluate import evaluate, parse_data
from experiments.experiment import config as config_lib
from experiments.experiment.build import setup
from experiments.experiment.results import name_of, place, print_sets
from experiments.prediction.reading import described
from experiments.reports import datasets
from experiments.runtime.workdir import read_config, read_json, write_json
from experiments.train import train
from uncertainty.build import ConfigError


def small(module, **fields):
    """The config with two networks of few steps."""
    config = module.get_config()
    config.update(dict(steps=40, mesh=dict(data=1), **fields))
    config.logging.every, config.evaluation.every, config.inference.size = 20, 0, 2
    config.optimiser.schedule = dict(name="constant")
    return config


@pytest.fixture(scope="module", params=[breast_cancer, diabetes], ids=["classes", "targets"])
def table(request, tmp_path_factory):
    """A run on one of scikit-learn's tables, and its test part raw in a file."""
    folder = tmp_path_factory.mktemp("table")
    config = small(request.param)
    train(config, folder / "run")
    spec = config_lib.plain(config)["evaluators"]["test"]["data"]
    raw = load(spec | dict(standardise=False))
    np.savez(folder / "raw.npz", x_test=raw.x, y_test=raw.y)
    return folder / "run", dict(name="npz", path=str(folder / "raw.npz"), split="test")


def evaluated(experiment, run, data):
    source = load(data, like=experiment.source, labels="alike")
    specs = {"data": dict(name=experiment.source.task, data=source)}
    found, failures = evaluate(experiment, run, specs=specs, name=name_of(data), show=False)
    assert not failures
    return {k: v for k, v in found.items() if not k.startswith("cost")}


@pytest.mark.slow
def test_raw_test_data_give_the_numbers_of_the_built_in_ones(table):
    run, spec = table
    built_in = read_config(run)["evaluators"]["test"]["data"]
    experiment = setup(read_config(run), read_description(run))
    expected = evaluated(experiment, run, built_in)
    assert evaluated(experiment, run, spec) == expected
    assert evaluated(experiment, run, spec | dict(standardise=True)) == expected
    assert evaluated(experiment, run, spec | dict(standardise=False)) != expected
    noted = read_json(run / "evaluation" / name_of(spec) / "sets.json")["data"]
    assert [note.split()[0] for note in noted["notes"]] == ["mean", "std"]


@pytest.mark.slow
def test_how_the_training_data_were_read_is_part_of_the_run(table):
    run, _ = table
    noted, config = read_description(run).train, read_config(run)
    source = load(config["data"]["train"])
    for field in ("mean", "std", "y_mean", "y_std"):
        np.testing.assert_array_equal(getattr(noted, field), getattr(source, field))
    assert (noted.classes, noted.outputs, noted.shape, len(noted)) == (
        source.classes,
        source.outputs,
        source.shape,
        0,
    )
    before = read_json(run / "data.json")
    # A run of a version that noted less has it from the training data again.
    write_json(run / "data.json", {k: before[k] for k in ("name", "shape", "classes", "outputs")})
    again = read_description(run).train
    write_json(run / "data.json", before)
    np.testing.assert_array_equal(again.mean, noted.mean)
    assert describe(source) == describe(load(config["data"]["train"]))


def test_images_are_described_by_channel(tmp_path):
    x = np.random.default_rng(0).uniform(0, 16, (9, 5, 5, 3))
    np.savez(tmp_path / "a.npz", x=x, y=np.arange(9) % 3)
    spec = dict(name="npz", path=str(tmp_path / "a.npz"), range=(0, 16), mean=(0.1, 0.2, 0.3))
    source = load(spec | dict(std=0.5))
    write_json(tmp_path / "data.json", describe(source))
    assert len(read_json(tmp_path / "data.json")["mean"]) == 3
    noted = read_description(tmp_path).train
    np.testing.assert_array_equal(noted.mean, source.mean)
    assert noted.range == (0, 16) and noted.shape == (5, 5, 3)
    write_json(tmp_path / "data.json", describe(source) | {"reading": 3})
    with pytest.raises(ValueError, match=r"data.json is damaged"):
        read_description(tmp_path)


@pytest.mark.slow
def test_a_run_does_not_resume_on_other_data(tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / "own.npz"
    config = small(breast_cancer)
    config.evaluators = {}
    config.data.train = dict(name="npz", path=str(path))
    config.data.validation = None
    for scale in (1, 2):
        np.savez(path, x=scale * rng.standard_normal((40, 3)), y=np.arange(40) % 2)
        if scale == 1:
            train(config, tmp_path / "run")
    with pytest.raises(ValueError, match=r"on other training data .*\n  digest: \w+ -> \w+"):
        train(config, tmp_path / "run")


def test_a_run_does_not_resume_on_data_that_are_read_otherwise(tmp_path):
    """The same examples with another mean, as of other rows of their file; rounding is the same."""
    x = np.random.default_rng(0).normal(5, 2, (40, 6))
    path, run = tmp_path / "own.npz", tmp_path / "run"
    spec = dict(name="npz", path=str(path), standardise=True, statistics="other")
    y = np.arange(40.0)[:, None]

    def source(at, other_x, other_y):
        np.savez(path, x=x, y=y, x_other=other_x, y_other=other_y)
        return load(spec | dict(split=at))

    first = source("train", x, y)
    run.mkdir()
    write_description(run, first)
    noted = read_json(run / "data.json")
    write_description(run, source("train", x, y))
    almost = [m * (1 + 1e-7) + 1e-7 for m in noted["mean"]]
    write_json(run / "data.json", noted | {"mean": almost})
    write_description(run, first)
    assert read_json(run / "data.json") == noted
    shifted = x + np.array([0, 0, 3, 0, 0, 0])
    with pytest.raises(ValueError, match=r"\n  mean\[2\]: (.*) -> (.*)$") as error:
        write_description(run, source("train", shifted, y))
    old, new = map(float, str(error.value).rpartition(": ")[2].split(" -> "))
    assert (old, new) == pytest.approx((x[:, 2].mean(), x[:, 2].mean() + 3), abs=1e-5)
    with pytest.raises(ValueError, match=r"\n  y_std\[0\]: "):
        write_description(run, source("train", x, 2 * y - y.mean()))
    assert read_json(run / "data.json") == noted


def test_results_are_named_after_the_data_and_not_overwritten(digits, tmp_path, programs):
    """Two files, each with results of its own; the same data again replace their own results."""
    test = load(dict(name="digits", split="test", classes=range(8)))
    results = []
    for folder, rows in (("a", slice(0, 100)), ("b", slice(100, 200)), ("a", slice(0, 100))):
        (tmp_path / folder).mkdir(exist_ok=True)
        path = tmp_path / folder / "mine.npz"
        np.savez(path, x_test=test.x[rows], y_test=test.y[rows])
        spec = dict(name="npz", path=str(path), split="test")
        result = programs("evaluate", "--workdir", digits, "--data", str(spec))
        assert result.code == 0, result.output
        assert "data: npz mine.npz[test], 100 examples" in result.output
        results.append(result.output.splitlines()[-1].rpartition("/")[2])
    assert results[0] == results[2] == "npz-mine-test"
    assert results[1].startswith("npz-mine-test-") and len(results[1]) == len("npz-mine-test-") + 8
    experiment = setup(read_config(digits), read_description(digits))
    source = load(dict(name="digits", split="validation", classes=range(8)), like=experiment.source)
    with pytest.raises(ConfigError, match=r"--name: 'npz-mine-test' has results of other data"):
        place(digits, "npz-mine-test", {}, source)


def test_the_sets_are_noted_and_shown(digits, capsys):
    sets = read_json(digits / "evaluation" / "test" / "sets.json")
    assert set(sets) == {"test", "corruption", "ood", "ood.held_out", "ood.noise"}
    assert sets["test"] == sets["ood"]
    assert sets["test"]["examples"] == len(
        load(dict(name="digits", split="test", classes=range(8)))
    )
    print_sets(sets, 300, "digits[train], 955 examples")
    output = capsys.readouterr().out
    assert "ood, test: digits[test], 323 examples" in output
    assert "Step 300, trained on digits[train], 955 examples, on\n" in output


BEFORE = {
    "missing file": (
        dict(sets=dict(a=dict(name="npz", path="/no/file.npz"))),
        "evaluators.ood.sets.a.path: there is no file",
    ),
    "another shape": (
        dict(sets=dict(a=dict(name="iris"))),
        r"evaluators.ood.sets.a: iris\[train\]: inputs of shape \(4,\), but",
    ),
    "labels": (
        dict(data=dict(name="digits", split="test")),
        "data.classes: .* 10 classes, but the model was trained on 8",
    ),
    "split": (dict(data=dict(split="tst")), "data.split: 'tst' does not exist"),
    "severity": ({}, "evaluators.corruption.severities: 9; these data can have"),
}


@pytest.mark.parametrize("case", BEFORE)
def test_evaluators_data_are_checked_before_training(case):
    changes, message = BEFORE[case]
    config = config_lib.load("configs/digits/mlp.py", {"mesh": dict(data=1)})
    config.evaluators.ood.update(changes)
    if case in ("severity", "missing file"):
        config.evaluators.corruption.severities = (9,)  # every fault is named
    with pytest.raises(ConfigError, match=message):
        setup(config)
    setup(config, evaluated=False)


def test_what_is_none_is_left_out():
    overrides = {"evaluators.ood.sets.noise": None, "evaluators.corruption": None}
    plain = config_lib.plain(config_lib.load("configs/digits/mlp.py", overrides))
    assert set(plain["evaluators"]) == {"test", "ood"}
    assert set(plain["evaluators"]["ood"]["sets"]) == {"held_out"}


def test_one_override_sets_all_data(tmp_path, caplog):
    """The sets of a config derive from its training data; one that does not is spoken of."""
    rng = np.random.default_rng(0)
    parts = {f"x_{s}": rng.random((60, 8, 8, 1)) for s in ("train", "validation", "test")}
    labels = {name.replace("x", "y"): np.arange(60) % 8 for name in parts}
    np.savez(tmp_path / "own.npz", **parts, **labels)
    own = dict(name="npz", path=str(tmp_path / "own.npz"), split="train")
    config = config_lib.load("configs/digits/mlp.py", {"data.train": own, "mesh": dict(data=1)})
    config.evaluators.ood.sets = {}
    with caplog.at_level(logging.WARNING):
        experiment = setup(config)
    plain = experiment.config
    assert plain["evaluators"]["test"]["data"] == own | dict(split="test")
    assert plain["evaluators"]["corruption"]["data"] == own | dict(split="test")
    assert plain["data"]["validation"] == own | dict(split="validation")
    assert "batch_size: 64, but npz[train] has 60 examples" in caplog.text
    assert "reads" not in caplog.text
    config.evaluators.test.data = dict(name="digits", split="test", classes=tuple(range(8)))
    with caplog.at_level(logging.WARNING):
        setup(config)
    assert "evaluators.test.data reads digits, but data.train reads npz" in caplog.text


def test_test_and_ood_sets_and_outputs_are_said_once(tmp_path, caplog):
    """For data of one's own: five classes of rows, with a split of another name."""
    rng, names = np.random.default_rng(0), ("train", "validation", "holdout")
    arrays = {f"x_{name}": rng.random((50, 3)).astype(np.float32) for name in names}
    np.savez(tmp_path / "own.npz", **arrays, **{f"y_{name}": np.arange(50) % 5 for name in names})
    own = dict(name="npz", path=str(tmp_path / "own.npz"))
    fields = {
        "data.train": own,
        "data.test": dict(split="holdout"),
        "data.ood": dict(noise=dict(name="noise", split="test"), rest=dict(split="validation")),
        "head.outputs": None,
        "evaluators.corruption": None,
        "evaluators.ood.sets": None,
        "mesh": dict(data=1),
        "batch_size": 10,
    }
    config = config_lib.load("configs/digits/mlp.py", fields)
    with caplog.at_level(logging.WARNING):
        experiment = setup(config)
    made, holdout = experiment.config, own | dict(split="holdout")
    assert made["head"]["outputs"] == 5
    assert made["evaluators"]["test"]["data"] == made["evaluators"]["ood"]["data"] == holdout
    assert made["evaluators"]["ood"]["sets"]["rest"] == own | dict(split="validation")
    assert set(made["data"]) == {"train", "validation", "augment", "streams"}
    leaves = jax.tree.leaves(experiment.final_shapes.params["head"])
    assert {leaf.shape[-1] for leaf in leaves} == {5}
    noise = load(made["evaluators"]["ood"]["sets"]["noise"], like=experiment.source)
    assert noise.shape == (3,)
    with pytest.raises(ValueError, match="shape: missing"):
        load(dict(name="noise", split="test"))
    assert "nothing reads it" not in caplog.text
    fields["evaluators.test.data"] = fields["evaluators.ood.data"] = dict(split="validation")
    with caplog.at_level(logging.WARNING):
        config_lib.plain(config_lib.load("configs/digits/mlp.py", fields))
        config_lib.plain(
            config_lib.load("configs/digits/mlp.py", fields | {"evaluators.ood": None})
        )
    assert "config.data.test: nothing reads it, as evaluators." in caplog.text
    assert "config.data.ood: nothing reads it; add" in caplog.text


def test_label_noise_belongs_to_the_part_that_has_it():
    noise = dict(transition=np.full((8, 8), 0.125).tolist())
    plain = config_lib.plain(
        config_lib.load("configs/digits/mlp.py", {"data.train.label_noise": noise})
    )
    assert plain["data"]["train"]["label_noise"] == noise
    for spec in (plain["data"]["validation"], plain["evaluators"]["test"]["data"]):
        assert "label_noise" not in spec and spec["classes"] == plain["data"]["train"]["classes"]
    train_spec = dict(name="rings", split="train", label_noise=noise)
    for text in ("rings:test", "{'split': 'test'}"):
        assert parse_data(text, train_spec) == dict(name="rings", split="test")


def test_the_same_data_read_otherwise_have_results_of_their_own(tmp_path, digits):
    like = read_description(digits).train
    spec = dict(name="digits", split="test", classes=range(8))
    places = []
    for more in ({}, dict(mean=0.1), dict(mean=0.9)):
        source = load(spec | more, like=like, labels="alike")
        places.append(place(tmp_path, None, spec, source))
        folder = tmp_path / "evaluation" / places[-1]
        folder.mkdir(parents=True)
        write_json(folder / "sets.json", {"data": described(source)})
        assert place(tmp_path, None, spec, source) == places[-1]
    assert len(set(places)) == 3
    with pytest.raises(ConfigError, match="has results of other data"):  # the config's own
        place(tmp_path, places[0], None, None)
    assert place(tmp_path, "free", None, None) == "free"


def test_parts_of_another_seed_are_spoken_of(caplog):
    config = small(breast_cancer)
    config.data.train.seed = 1
    config.evaluators.test.data = dict(name="breast_cancer", split="test")
    with caplog.at_level(logging.WARNING):
        setup(config)
    assert "evaluators.test.data: seed None, but the training data's is 1" in caplog.text


WRONG_KINDS = {
    "evaluators.test.data": ("digits", "evaluators.test.data: 'digits' is not a dict of fields"),
    "evaluators.ood.sets": (5, "evaluators.ood.sets: 5 is a int; a dict is needed"),
    "evaluators.ood.sets.noise": ("digits", "evaluators.ood.sets.noise: 'digits' is not a dict"),
    "evaluators.test.bins": (0, "evaluators.test.bins: 0; a whole number from 1"),
    "evaluators.corruption.severities": (5, "evaluators.corruption.severities: 5 is a int; a list"),
    "evaluators.corruption.kinds": (("fog",), "evaluators.corruption.kinds: 'fog'; these data can"),
    "data.train.classes": (3, "data.train.classes: 3; a list of labels"),
    "data.train.classes ": ((True, False), "labels must be in"),
    "data.train.mean": ("a", "data.train.mean: 'a'; a number, or one per channel"),
    "data.train.standardise": ("yes", "data.train.standardise: 'yes'; true or false"),
    "data.train.split": ("train[_%:]", "write 'train'"),
}


@pytest.mark.parametrize("field", WRONG_KINDS)
def test_fields_of_another_kind_are_named(field):
    value, message = WRONG_KINDS[field]
    config = config_lib.load("configs/digits/mlp.py", {field.strip(): value, "mesh.data": 1})
    with pytest.raises(ConfigError) as error:
        setup(config)
    assert message in str(error.value)


def test_files_of_one_folder_are_parts_of_one_set(tmp_path, caplog):
    """Nothing is said of own/train.npz and own/test.npz; of another set once, with its readers."""
    rng = np.random.default_rng(0)
    for name in ("train", "val", "held_out", "fashion"):
        np.savez(tmp_path / f"{name}.npz", x=rng.random((60, 8, 8, 1)), y=np.arange(60) % 8)
    names = ("train", "val", "held_out")
    own = {n: dict(name="npz", path=str(tmp_path / f"{n}.npz")) for n in names}
    fields = {
        "data.train": own["train"],
        "data.validation": own["val"],
        "data.test": own["held_out"],
        "evaluators.ood": None,
        "mesh": dict(data=1),
    }
    with caplog.at_level(logging.WARNING):
        setup(config_lib.load("configs/digits/mlp.py", fields))
    assert "reads" not in caplog.text
    other = dict(name="npz", path=str(tmp_path / "fashion.npz"))
    with caplog.at_level(logging.WARNING):
        setup(config_lib.load("configs/digits/mlp.py", fields | {"data.test": other}))
    assert caplog.text.count("fashion.npz, but data.train reads npz") == 1
    assert "evaluators.corruption.data, evaluators.test.data read npz" in caplog.text


@pytest.mark.parametrize(
    ("path", "other", "alike"),
    [
        ("own/train.npz", "own/test.npz", True),
        ("own/digits-train.npz", "own/digits_holdout.npz", True),
        ("own/training_set/x.npz", "own/test_set/x.npz", True),
        ("own/train.npz", "other/test.npz", False),
        ("mnist.npz", "fashion.npz", False),
        ("mnist/train.npz", "kmnist/train.npz", False),
        ("trainees.npz", "testimony.npz", False),
    ],
)
def test_which_paths_are_parts_of_one_set(path, other, alike):
    pair = [dict(name="npz", path=p, split="train") for p in (path, other)]
    assert parts_of_one(*pair) == alike
    assert not parts_of_one(pair[0], dict(pair[0], name="idx"))
    config = dict(data=dict(train=pair[0]), evaluators=dict(test=dict(data=pair[1])))
    sets = dict(test=datasets.Data("npz[test]", 5, "a"))
    assert datasets.others(config, sets, datasets.Data("npz[train]", 9, "b")) == (
        () if alike else ("test",)
    )


def test_integers_are_labels_and_large_targets_are_spoken_of(tmp_path, caplog):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 4)), 300 + 100 * rng.normal(size=60)
    config = small(diabetes)
    for name, values in (("negative", y.astype(int) - 300), ("counts", y.astype(int)), ("own", y)):
        arrays = {f"{k}_{s}": v for s in ("train", "test") for k, v in (("x", x), ("y", values))}
        np.savez(tmp_path / f"{name}.npz", **arrays)
    config.head.outputs, config.data.validation = None, None
    for name, message in (
        ("negative", "label -.* of example .* targets of regression are stored as floats"),
        ("counts", "labels run from|integer y are labels; store targets of regression as floats"),
    ):
        config.data.train = dict(name="npz", path=str(tmp_path / f"{name}.npz"), split="train")
        with pytest.raises(ValueError, match=message):
            setup(config)
    for standardise, said in ((False, True), (True, False)):
        caplog.clear()
        path = str(tmp_path / "own.npz")
        config.data.train = dict(name="npz", path=path, split="train", standardise=standardise)
        with caplog.at_level(logging.WARNING):
            setup(config, evaluated=False)
        assert ("data.train.standardise=true takes them in units of these" in caplog.text) == said
