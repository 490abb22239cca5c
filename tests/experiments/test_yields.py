"""The contract of evaluators, and that they declare what they yielded in all finished cells."""

import json
import pathlib
import pkgutil

import numpy as np
import pytest

from experiments import evaluate, evaluators
from experiments.data import labels
from experiments.data.source import load
from experiments.evaluators import Evaluator, build, build_all, check_data
from experiments.reports.glossary import definition, to_markdown
from experiments.runtime import keys
from uncertainty.build import ConfigError

ROOT = pathlib.Path(__file__).parents[2]
OF_THE_RUN = {"cost/parameters", "cost/train_seconds", "cost/train_ms_per_example", "cost/step"}


@pytest.fixture(scope="module")
def records():
    """The first seed of every row of every committed table, with the names that it declares."""
    files = sorted(ROOT.glob("results/*/runs.jsonl"))
    assert len(files) >= 9
    found = [
        record
        for file in files
        for record in map(json.loads, file.read_text().splitlines())
        if record["seed"] == 0
    ]
    return [
        (r, set().union(*(build(k, spec).yields for k, spec in r["config"]["evaluators"].items())))
        for r in found
    ]


def test_every_number_of_finished_cells_is_declared(records):
    for record, names in records:
        assert {k for k in record["metrics"] if not keys.among(k, names | OF_THE_RUN)} == set()


def test_nothing_is_declared_that_no_cell_has(records):
    found = {keys.split(key)[:1] + keys.split(key)[-1:] for r, _ in records for key in r["metrics"]}
    declared = {
        keys.split(name)[:1] + keys.split(name)[-1:] for _, names in records for name in names
    }
    # OOD scores of targets, which tables of classes cannot have: in test_posthoc.py.
    others = {
        name
        for name in declared
        if name[-1].endswith(("predictive_variance", "aleatoric_variance"))
    }
    assert declared - others - found == set()


TEST = dict(name="digits", split="test")
# The fields that each evaluator needs.
FIT = dict(name="digits", split="validation")
MINIMAL = {
    "calibration": dict(data=TEST),
    "classification": dict(data=TEST),
    "combination": dict(data=TEST, fit=FIT),
    "conformal": dict(data=TEST, fit=FIT),
    "corrupted": dict(data=TEST),
    "corruption": dict(data=TEST, severities=(5,)),
    "cues": dict(sets=dict(a=TEST, b=TEST), diagonal=TEST),
    "disambiguation": dict(data=TEST, pool=FIT),
    "few_shot": dict(sets=dict(a=dict(train=TEST, test=TEST))),
    "flops": {},
    "halves": dict(data=TEST),
    "human": dict(data=TEST),
    "intervals": dict(data=dict(name="cubic"), fit=dict(name="cubic", split="validation")),
    "joint": dict(data=TEST),
    "kinds": dict(data=TEST, kinds=("a", "b"), classes=True),
    "knn_probe": dict(train=FIT, data=TEST),
    "ood": dict(data=TEST, sets=dict(a=dict(name="noise", shape=(8, 8, 1)))),
    "posterior": dict(reference="file.npz", data=dict(name="x_sin_x", split="grid")),
    "posthoc": dict(data=TEST, fit=FIT),
    "regions": dict(data=dict(name="cubic"), fit=dict(name="cubic", split="validation")),
    "regression": dict(data=dict(name="cubic")),
    "routing": dict(data=TEST),
    "simplicity": dict(data=TEST, simple_randomised=TEST, complex_randomised=TEST),
    "symmetry_probe": dict(train=FIT, data=TEST, kinds=("a", "b")),
    "uncertainty_map": dict(data=dict(name="rings"), groups=dict(a=dict(name="rings"))),
}


def test_every_file_makes_an_evaluator_of_its_name():
    files = {m.name for m in pkgutil.iter_modules(evaluators.__path__)}
    assert files == set(MINIMAL)
    built = build_all({f"a_{kind}": dict(name=kind, **fields) for kind, fields in MINIMAL.items()})
    for evaluator in built.values():
        assert isinstance(evaluator, Evaluator)
        assert evaluator.task in ("classification", "regression", None)
        assert evaluator.yields and all("/" in name for name in evaluator.yields)
        assert {read.labels for read in evaluator.data} <= {"own", "alike", "unused"}
    read = {key: [r.field for r in evaluator.data] for key, evaluator in built.items()}
    assert read["a_few_shot"] == ["sets.a.train", "sets.a.test"]
    assert read["a_ood"] == ["data", "sets.a"] and read["a_flops"] == []
    assert [r.labels for r in built["a_uncertainty_map"].data] == [labels.ALIKE, labels.UNUSED]


def test_every_metric_has_a_definition(records):
    built = build_all({f"a_{kind}": dict(name=kind, **fields) for kind, fields in MINIMAL.items()})
    declared = set().union(*(evaluator.yields for evaluator in built.values()))
    found = {key for record, _ in records for key in record["metrics"]}
    corrupted = "conformal/aps_temperature/severity_5/size"
    assert [k for k in {*declared, *found, *OF_THE_RUN, corrupted} if not definition(k)] == []
    assert definition(corrupted).endswith("Under corruption: the mean over kinds")
    assert definition("ood/a%2Fb/auroc_entropy").endswith("Score: entropy of the mixture")
    assert definition("classification/precision") == definition("unknown/nll") == ""
    assert "|" not in to_markdown().replace("\\|", "").replace("| ", "").replace(" |", "")
    texts = [definition(f"{group}/a/accuracy") for group in ("posthoc", "combination")]
    assert [text.partition(": ")[2][:5] for text in texts] == ["share", "share"]
    assert definition("posthoc/a/ece_mass").startswith("After calibration: ECE over")


@pytest.mark.parametrize("kind", [k for k, f in MINIMAL.items() if "data" in f])
def test_what_is_no_data_set_is_refused_by_its_field(kind):
    for value, message in ((5, "e.data: 5 is not a dict of fields"), ({}, "e.data.name: None is")):
        with pytest.raises(ConfigError, match=f"evaluators.{message}"):
            build("e", dict(MINIMAL[kind], name=kind, data=value))


def test_two_values_of_one_name_are_reported():
    def giving(value):
        return Evaluator(lambda predict: iter([("x/y", value)]), None, {"x/y"})

    metrics, _, failures = evaluate.run_all(
        dict(a=giving(1.0), b=giving(1.0), c=giving(2.0)), None, ""
    )
    assert metrics == {"x/y": 1.0} and list(failures) == ["c"]
    assert failures["c"].endswith(
        "x/y: 2.0, but an evaluator before has 1.0; results have one value for a name"
    )


@pytest.mark.parametrize("other", [[1.0, 2.5], [1.0], ["1", "2"]])
def test_two_arrays_of_one_name_are_reported(other):
    """As of two calibrators of one label, of which fitted.npz would have the second alone."""

    def giving(values, number):
        items = [("x/y", np.array(values)), ("x/n", number)]
        return Evaluator(lambda predict: iter(items), None, {"x/n"})

    built = dict(a=giving([1.0, np.nan], 1.0), b=giving([1.0, np.nan], 1.0))
    metrics, arrays, failures = evaluate.run_all(built | dict(c=giving(other, 2.0)), None, "")
    np.testing.assert_array_equal(arrays["x/y"], [1.0, np.nan])
    assert metrics == {"x/n": 1.0} and list(failures) == ["c"]
    assert "x/y: another array than that of an evaluator before" in failures["c"]


def test_data_are_read_once_and_every_fault_is_named():
    source = load(dict(TEST, split="train"))
    missing = dict(name="npz", path="/no/file.npz")
    built = build_all(
        dict(
            a=dict(name="classification", data=TEST),
            b=dict(name="ood", data=TEST, sets=dict(x=missing, y=dict(name="iris"))),
            c=dict(name="classification", data=missing),
            d=dict(name="uncertainty_map", data=TEST),
        ),
        "classification",
    )
    with pytest.raises(ConfigError) as error:
        check_data(built, source)
    starts = [line.partition(": ")[0] for line in str(error.value).splitlines()]
    assert starts == [
        "evaluators.b.sets.x.path",
        "evaluators.b.sets.y",
        "evaluators.c.data.path",
        "evaluators.d.data",
    ]
    del built["b"], built["c"], built["d"]
    check_data(built, source)


def test_among():
    names = {"routing/*/dropped", "ood/a%2Fb/auroc_entropy"}
    for key in ("routing/block01/dropped", "routing/a/b/dropped", "ood/a%2Fb/auroc_entropy"):
        assert keys.among(key, names)
    for key in ("routing/dropped", "routing/block01/load", "ood/a/b/auroc_entropy", "x"):
        assert not keys.among(key, names)
