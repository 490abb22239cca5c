"""Validation data are neither training nor test data, and the training part alone normalises."""

import numpy as np
import pytest

from experiments.data.derived import part_of
from experiments.data.overlap import require_apart, share
from experiments.data.source import load
from experiments.experiment import build
from experiments.experiment import config as config_lib
from experiments.tables.cells import Cells
from uncertainty.build import ConfigError

MLP = "configs/digits/mlp.py"


def read(**fields):
    changes = {name.replace("__", "."): value for name, value in fields.items()}
    return build.read(config_lib.plain(config_lib.load(MLP, changes)))


@pytest.mark.parametrize("every", [0, 5])
def test_validation_data_that_are_training_data_are_refused(every):
    """Whether training reads them or what selects and calibrates later."""
    fields = dict(evaluation__every=every, data__validation={"split": "train[90%:]"})
    message = r"data\.validation: 100% of the \d+ examples of digits/train\[90%:\] are in digits"
    with pytest.raises(ValueError, match=message):
        read(**fields)
    train = dict(name="digits", split="train[:90%]", classes=range(8))
    assert (read(**fields, data__train=train).validation is None) == (every == 0)


def test_validation_data_are_compared_with_the_sets_of_the_particles():
    parts = [dict(split="train[:40%]"), dict(split="train[40%:80%]")]
    fields = dict(evaluation__every=5, data__particles=dict(name="sets", sets=parts))
    assert len(read(**fields, data__validation={"split": "train[80%:]"}).sets) == 2
    with pytest.raises(ValueError, match=r"data\.validation: 100% .* in digits/train\[40%:80%\]"):
        read(**fields, data__validation={"split": "train[60%:80%]"})


def test_validation_data_that_nothing_reads_may_be_missing():
    fields = dict(data__validation=dict(name="npz", path="/no/file.npz"))
    assert read(**fields, evaluation__every=0).validation is None
    with pytest.raises(ConfigError, match=r"data\.validation\.path: there is no file"):
        read(**fields, evaluation__every=5)


def test_examples_that_are_equal_by_chance_are_no_overlap(tmp_path, caplog):
    """Rows of a few discrete features, and other targets at the points of the same grid."""
    rng = np.random.default_rng(0)
    rows = dict(x=rng.integers(0, 2, (400, 3)).astype(np.float32), y=rng.integers(0, 2, 400))
    grid = np.tile(np.linspace(-1, 1, 50, dtype=np.float32), 2)[:, None]
    targets = dict(x=grid, y=(np.sin(grid) + rng.normal(size=grid.shape)).astype(np.float32))
    for name, arrays, cut, refused in (("rows", rows, 200, False), ("grid", targets, 50, False),
                                       ("grid", targets, 25, True)):  # fmt: skip
        np.savez(tmp_path / f"{name}.npz", **arrays)
        spec = dict(name="npz", path=str(tmp_path / f"{name}.npz"), num_classes=None)
        train = load(dict(spec, split=f"train[:{cut}]" if not refused else "train"))
        held_out = load(dict(spec, split=f"train[{cut}:]"), like=train, labels="alike")
        assert share(held_out, train) == {"rows": 1.0, "grid": float(refused)}[name]
        if refused:
            with pytest.raises(ValueError, match="v: 100% of the 75 examples"):
                require_apart("v", held_out, train, "the training data")
        else:
            require_apart("v", held_out, train, "the training data")
    assert caplog.text.count("v: 100.0 % of the examples") == 1


def test_a_part_of_the_training_split_is_normalised_by_its_own_rows(tmp_path):
    """Not by those that are held out from it, which are read in the same way."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(3, 2, (50, 4)), rng.normal(7, 5, (50, 1))
    np.savez(tmp_path / "own.npz", x=x, y=y)
    train = dict(name="npz", path=str(tmp_path / "own.npz"), standardise=True, split="train[:40%]")
    source = load(train)
    held_out = load(part_of(train, dict(split="train[40%:]")), like=source, labels="alike")
    for one, rows in ((source, slice(20)), (held_out, slice(20, None))):
        found = one.gather(np.arange(len(one)))
        np.testing.assert_allclose(
            found["x"], (x[rows] - x[:20].mean(0)) / x[:20].std(0), atol=1e-5
        )
        np.testing.assert_allclose(found["y"], (y[rows] - y[:20].mean()) / y[:20].std(), atol=1e-5)
    whole = load(train | dict(statistics="train"))
    np.testing.assert_allclose(whole.mean, x.mean(0), rtol=1e-5)
    np.testing.assert_array_equal(load(train | dict(split="train")).mean, whole.mean)
    in_parts = load(train | dict(split="train[:10%] + train[30%:40%]"))
    rows = [*range(5), *range(15, 20)]
    np.testing.assert_allclose(in_parts.mean, x[rows].mean(0), rtol=1e-5)


def test_a_range_is_measured_on_the_part_that_is_trained_on(tmp_path):
    pixels = np.random.default_rng(0).normal(size=(50, 5, 5, 1))
    np.savez(tmp_path / "own.npz", x=pixels, y=np.arange(50) % 2)
    train = dict(name="npz", path=str(tmp_path / "own.npz"), range="measured", split="train[:40%]")
    source = load(train)
    held_out = load(part_of(train, dict(split="train[40%:]")), like=source, labels="alike")
    assert source.range == held_out.range == (pixels[:20].min(), pixels[:20].max())
    whole = part_of(train | dict(split="train"), dict(split="train[40%:]"))
    assert "statistics" not in whole
    assert load(whole, like=load(train | dict(split="train"))).range == (pixels.min(), pixels.max())


TEST, VALIDATION = dict(split="test"), dict(split="validation")
TESTED = {"name": "classification", "data": TEST}


@pytest.mark.parametrize(
    ("validation", "evaluators", "message"),
    [
        (VALIDATION, {"test": TESTED}, None),
        (VALIDATION, {"test": TESTED, "e": dict(name="posthoc", data=TEST, fit=VALIDATION)}, None),
        (dict(split="test[:50%]"), {"test": TESTED},
         r"data\.validation: 100% .* the data of evaluators\.test\.data"),
        (TEST, {"test": {**TESTED, "data": dict(split="test[:40%]")}},
         r"evaluators\.test\.data: 100% .* the validation data, by which settings are selected"),
        (VALIDATION, {"test": TESTED, "e": dict(name="ood", data=TEST, sets=dict(a=VALIDATION))},
         r"the data of evaluators\.e\.sets\.a"),
        (dict(name="npz", path="/no.npz"), {"test": TESTED}, r"^data\.validation\.path: there is"),
    ],
)  # fmt: skip
def test_settings_are_not_selected_on_what_is_reported(tmp_path, validation, evaluators, message):
    """Nothing is trained for it; evaluators may be fitted to the validation data."""
    changes = {"data.validation": validation, "evaluators": evaluators}
    row = dict(label="one", config=MLP, set=changes)
    table = dict(title="", seeds=(0,), rows=[row], columns=[], validated="classification")
    cells = Cells("sweep", tmp_path / "r", tmp_path / "w", {}, table=table)
    if message is None:
        return cells.check_selection(cells.config(row, 0))
    with pytest.raises(ValueError, match=message):
        cells.run(row, 0)
    assert not cells.run_directory(row, 0).exists()
