"""Sweeps: what is drawn and chosen, and that particles of one program are runs by themselves."""

import importlib.util
import json
import math
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments import sweep
from experiments.runtime.checkpoint import Checkpoints
from experiments.runtime.workdir import read_config
from experiments.sweeps import figures, selection, space, spec
from experiments.sweeps.together import groups, joint
from experiments.tables.claims import Claims
from experiments.tables.run import Shard
from uncertainty.build import ConfigError

DIGITS = "configs/digits/mlp.py"
TEST = 'evaluators={"test": {"name": "classification", "data": {"split": "test"}}}'
FIELDS = (
    "steps=12",
    "optimiser.schedule.warmup_steps=2",
    "batch_size=32",
    "backbone.widths=[8]",
    "logging.every=4",
    "mesh={'data': 1}",
    TEST,
)
SMALL = ["--config", DIGITS, *(word for field in FIELDS for word in ("--set", field))]


# What is tried


def test_a_grid_is_all_combinations():
    axes = [space.axis("a.x", "[1, 2]"), space.axis("b.x", [None, "t"]), space.axis("c", "[0.5]")]
    made = space.settings(axes)
    expected = [(x, y, 0.5) for x in (1, 2) for y in (None, "t")]
    assert [tuple(one.values()) for one in made] == expected
    assert space.labels(made)[1] == "a.x=1, b.x=t, c=0.5"
    assert space.labels([{"a.decay": [[".*kernel", 0.01]]}]) == ["decay=0.01"]
    assert space.labels([{"a.rate": 1e-5}, {"a.rate": 1e20}]) == ["rate=1e-05", "rate=1e20"]


@settings(max_examples=15)
@given(st.integers(1, 30), st.integers(1, 30), st.integers(0, 5))
def test_more_draws_begin_with_the_same_ones_also_with_one_more_field(few, more, seed):
    axes = [space.axis("rate", "log(1e-4, 1e-1)"), space.axis("size", "integers(1, 9)")]
    few, more = sorted((few, more))
    longer = space.settings(axes, more, seed)
    assert space.settings(axes, few, seed) == longer[: len(space.settings(axes, few, seed))]
    wider = space.settings([*axes, space.axis("x", "uniform(-1, 1)")], few, seed)
    assert [(o["rate"], o["size"]) for o in wider][:1] == [tuple(longer[0].values())]
    for one in longer:
        assert 1e-4 <= one["rate"] <= 1e-1 and 1 <= one["size"] <= 9
        assert float(f"{one['rate']:.3g}") == one["rate"]  # the label is the whole value


def test_draws_have_the_distributions_that_they_are_asked_for():
    axes = [space.axis("l", {"log": [1e-4, 1.0]}), space.axis("u", "uniform(2, 4)"),
            space.axis("i", "integers(0, 3)"), space.axis("c", "['a', 'b']")]  # fmt: skip
    made = space.settings(axes, 800)
    logs = np.log10([one["l"] for one in made])
    assert abs(logs.mean() + 2) < 4 * (4 / 12**0.5) / 800**0.5
    assert abs(np.mean([one["u"] for one in made]) - 3) < 4 * (2 / 12**0.5) / 800**0.5
    counts = np.bincount([one["i"] for one in made])
    assert len(counts) == 4 and (abs(counts - 200) < 50).all()
    assert abs(sum(one["c"] == "a" for one in made) - 400) < 57
    assert abs(np.corrcoef(logs, [one["u"] for one in made])[0, 1]) < 4 / 800**0.5


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("0.1", "0.1; [value, ...], log(low, high)"),
        ("[]", "is empty"),
        ("[1, 1]", "1 is there twice"),
        ("lgo(1, 2)", "no range 'lgo'"),
        ("log(0, 1)", "low has to be positive"),
        ("uniform(2, 1)", "low < high"),
        ("uniform(1)", "(low, high)"),
        ("integers(0.5, 2)", "whole numbers"),
        ("[1, b]", "'b' needs quotes"),
    ],
)
def test_what_is_no_axis_is_refused(value, message):
    with pytest.raises(ConfigError, match=re.escape(message)) as error:
        space.axis("optimiser.learning_rate", value)
    assert "--sweep optimiser.learning_rate" in str(error.value)


def run(*arguments):
    return sweep.main([str(argument) for argument in arguments])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sweep", "optimiser.learning_rate=log(1e-3,1)"], "needs --random N"),
        (["--sweep", "seed=[0, 1]"], "use --seeds"),
        (["--sweep", "steps=[1, 2]"], "--sweep steps: is set by --set too"),
        (["--sweep", "optimiser.learning_rte.x=[1, 2]"], "config.optimiser.learning_rte"),
        (["--sweep", "steps2=[1, 2]"], "config.steps2: no such section"),
        (["--sweep", "optimiser.learning_rate=[1]", "--select", "classification/nl"],
         "did you mean 'classification/nll'"),
        (["--sweep", "optimiser.learning_rate=[1]", "--select", "uncertainty/entropy"],
         "say which is better"),
        (["--sweep", "data.validation=[null]"], "config.data.validation: missing"),
        (["--sweep", "optimiser.learning_rate=[1]", "--set", "evaluators.test=null"],
         "evaluators.test"),
        ([], "--sweep: missing"),
        (["--sweep", "optimiser.learning_rate=[1]", "--launcher", "local", "--shard", "0/2"],
         "--shard: the launcher"),
        (["--sweep", "optimiser.learning_rate=[1]", "--resource", "a=b"], "is for --launcher"),
    ],
)  # fmt: skip
def test_what_cannot_be_swept_is_said_before_anything_runs(arguments, message, tmp_path, capsys):
    assert run(*SMALL, "--workdir", tmp_path / "w", *arguments) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "w").exists()


def test_a_file_says_what_flags_say(tmp_path):
    toml = """
        config = "configs/digits/mlp.py"
        seeds = [3, 4]
        random = 2
        [set]
        steps = 12
        "data.validation" = {split = "validation"}
        [sweep]
        "optimiser.learning_rate" = {log = [1e-4, 1e-2]}
        backbone.widths = [[8], [16, 16]]
    """
    (tmp_path / "s.toml").write_text(toml)
    content = spec.read(str(tmp_path / "s.toml"))
    made = spec.joined(content, dict(sweep=None, seeds=[5], set={"steps": 3}))
    assert made.seeds == (5,) and made.random == 2 and made.set["steps"] == 3
    assert made.set["data.validation"] == {"split": "validation"}
    assert made.axes[0] == space.axis("optimiser.learning_rate", "log(1e-4, 1e-2)")
    assert made.axes[1].values == ([8], [16, 16])
    (tmp_path / "s.json").write_text(json.dumps(made.as_dict()))
    assert spec.joined(spec.read(str(tmp_path / "s.json")), {}) == made
    spec.note(made, tmp_path)
    spec.note(made._replace(seeds=(1, 2)), tmp_path)  # it may grow
    with pytest.raises(ConfigError, match="belongs to a sweep with set"):
        spec.note(made._replace(set={}), tmp_path)
    for text, message in (
        ("seeds = 1", "seeds = 1"),
        ("sed = 1", "no field 'sed'"),
        ("=", "valid"),
    ):
        (tmp_path / "s.toml").write_text(text)
        with pytest.raises(ConfigError, match=message):
            spec.read(str(tmp_path / "s.toml"))


# What is chosen


@settings(max_examples=30)
@given(st.integers(0, 10**6), st.integers(2, 6), st.integers(1, 4), st.booleans())
def test_the_choice_and_its_regret_are_those_of_a_search_by_hand(seed, rows, seeds, higher):
    rng = np.random.default_rng(seed)
    v, t = rng.normal(size=(2, rows, seeds))
    names = [f"r{i}" for i in range(rows)]
    validation, test = (
        {name: dict(enumerate(of)) for name, of in zip(names, a, strict=True)} for a in (v, t)
    )
    made = selection.choose(validation, test, range(seeds), "higher" if higher else "lower")
    sign = -1 if higher else 1
    i, best = np.argmin(sign * v.mean(1)), np.argmin(sign * t.mean(1))
    assert (made.row, made.best) == (names[i], names[best])
    differences = sign * (t[i] - t[best])
    np.testing.assert_allclose(made.regret.mean, differences.mean(), atol=1e-12)
    assert made.regret.mean >= -1e-12
    if seeds > 1:
        error = differences.std(ddof=1) / seeds**0.5
        np.testing.assert_allclose(made.regret.error, error, atol=1e-12)
    alone = [sign * t[np.argmin(sign * v[:, s]), s] - (sign * t[:, s]).min() for s in range(seeds)]
    np.testing.assert_allclose(made.regret_by_seed.mean, np.mean(alone), atol=1e-12)


def test_test_values_decide_nothing_and_what_failed_is_not_chosen():
    validation = {"a": {0: 1.0, 1: 1.0}, "b": {0: 0.1}, "c": {0: 0.5, 1: math.nan}, "d": {}}
    validation["e"] = {0: 2.0, 1: 2.0}
    test = {"a": {0: 9.0, 1: 9.0}, "e": {0: 1.0, 1: 2.0}, "b": {0: 0.0, 1: 0.0}}
    made = selection.choose(validation, test, (0, 1))
    assert made.row == "a" and made.best == "e" and made.regret.mean == 7.5
    assert made.left_out == {
        "b": "no result with seed 1",
        "c": "not finite with seed 1",
        "d": "no result with seeds 0, 1",
    }
    text = " ".join(selection.sentences(made, "NLL", (1, "nats", 3)))
    assert "Selected on validation NLL: a." in text and "7.5 ± 0.5 nats against e" in text
    assert selection.choose({"d": {}}, {}, (0,)).row is None
    assert selection.choose({"a": {0: 1.0}}, {}, (0,)).regret is None


def test_figures_show_every_setting_and_mark_the_selected_one():
    axes = [space.axis("o.rate", "[1e-3, 1e-2, 0.1]"), space.axis("head", "[{'name': 'a'}, 'b']")]
    made = dict(zip("uvwxyz", space.settings(axes), strict=True))
    values = {name: {0: 0.1 * i + 0.1, 1: 0.1 * i + 0.2} for i, name in enumerate(made)}
    found = figures.points(made, values, values, "w")
    figure = figures.marginals(found, ["o.rate", "head"], "NLL (nats)")
    rate, head = figure.axes
    assert rate.get_xscale() == "log" and head.get_xscale() == "linear"
    assert [t.get_text() for t in head.get_xticklabels()] == ["{name:a}", "b"]
    rings = [line for line in rate.lines if line.get_markersize() == 11 and len(line.get_xdata())]
    np.testing.assert_allclose(rings[0].get_xdata(), made["w"]["o.rate"])
    np.testing.assert_allclose(rings[0].get_ydata(), 0.35)
    lines = figures.parallel(found, ["o.rate", "head"], "NLL", "lower").axes[0].lines
    drawn = [line for line in lines if len(line.get_xdata()) == 3]
    assert len(drawn) == 6
    np.testing.assert_allclose(drawn[-1].get_ydata(), [0.5, 0, 0.4], atol=1e-9)  # 'w', last


# Particles of one program


def configs(*axes, **fields):
    made = spec.joined(dict(config=DIGITS, set=fields, sweep=dict(axes)), {})
    table, _ = spec.table_of(made)
    from experiments.tables.cells import Cells

    cells = Cells("sweep", "r", "w", {}, table=table)
    return [cells.config(row, 0) for row in table["rows"]]


def test_only_what_particles_may_have_is_put_together():
    rates = ("optimiser.learning_rate", [1e-3, 2e-3])
    decays = ("optimiser.weight_decay", [[[".*kernel", 0.1]], [[".*kernel", 0.0]]])
    made = configs(rates, decays, **{"inference.size": 2})
    assert groups(made) == [[0, 1, 2, 3]]
    one = joint(made)
    assert one["inference"]["size"] == 8 and one["inference"]["distinct"] == 2
    factors = np.array(one["inference"]["hyper"]["learning_rate"])
    np.testing.assert_allclose(factors * one["optimiser"]["learning_rate"],
                               np.repeat([1e-3, 1e-3, 2e-3, 2e-3], 2))  # fmt: skip
    assert one["inference"]["hyper"]["weight_decay"] == [1, 1, 0, 0] * 2
    assert list(map(list, one["optimiser"]["weight_decay"])) == [[".*kernel", 0.1]]
    # Another field parts the groups.
    assert groups(configs(rates, ("backbone.widths", [[8], [9]]))) == [[0, 2], [1, 3]]
    # Rules of another shape, bootstrap, hyper-parameters of the config's own: by themselves.
    other = ("optimiser.weight_decay", [[[".*kernel", 0.1]], [[".*", 0.1]]])
    assert groups(configs(other)) == []
    assert groups(configs(rates, **{"data.particles": "shuffled"})) == []
    assert groups(configs(rates, **{"inference.hyper": {"learning_rate": [1.0, 2.0]}})) == []
    # No factor stands for no learning rate, nor for one that is 1e30 times as large.
    assert joint(configs(("optimiser.learning_rate", [0.0, 0.1]))) is None
    assert joint(configs(("optimiser.learning_rate", [0.1, 1e30]))) is None
    smoothing = {"objective": {"name": "label_smoothing", "rate": 0.1}}
    made = configs(("objective.rate", [0.0, 0.2]), **smoothing)
    assert joint(made)["inference"]["hyper"] == {"label_smoothing": [0.0, 0.2]}
    views = {"objective": {"name": "contrastive", "invariance": 0.5, "equivariance": 0.4}}
    made = configs(("objective.invariance", [0.0, 0.5]), **views)
    assert joint(made)["inference"]["hyper"] == {"invariance": [0.0, 0.5]}
    gaussian = {"inference.prior": {"name": "gaussian", "scale": 1.0}, "optimiser.weight_decay": []}
    made = configs(("inference.prior.scale", [0.5, 2.0]), **gaussian)
    assert joint(made)["inference"]["hyper"] == {"prior_scale": [0.25, 1.0]}
    ruled = {**gaussian, "inference.prior": {"name": "gaussian", "rules": [[".*bias", 1.0]]}}
    assert groups(configs(("inference.prior.scale", [0.5, 2.0]), **ruled)) == []


def read_history(folder):
    records = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [record for record in records if "loss" in record]  # without validation


def metrics_of(workdir):
    lines = map(json.loads, (workdir / "runs.jsonl").read_text().splitlines())
    return {(line["row"], line["seed"]): line for line in lines}


@pytest.mark.slow
def test_particles_of_one_program_are_the_runs_by_themselves(tmp_path, capsys):
    """To rounding, for ensembles of two, with as many outputs as the data have classes; what is not
    finite fails by itself and alone; a repeated command reads all but what failed, and further
    seeds and values are added. Evaluators may be fitted to the validation data."""
    sgd = {"name": "sgd", "learning_rate": 0.1, "weight_decay": [[".*kernel", 1e-2]]}
    test, held_out = {"split": "test"}, {"split": "validation"}
    evaluators = {"test": {"name": "classification", "data": test}}
    evaluators["posthoc"] = {"name": "posthoc", "data": test, "fit": held_out}
    more = {"optimiser": sgd, "inference.size": 2, "evaluators": evaluators}
    fields = [*SMALL, *(f"--set={field}={json.dumps(value)}" for field, value in more.items())]
    fields += ["--set", "head.outputs=none"]
    asked = ["--sweep", "optimiser.learning_rate=[0.05, 0.2, 1e6]", "--seeds", "1"]
    together, alone = tmp_path / "together", tmp_path / "alone"
    assert run(*fields, *asked, "--workdir", together) == 1
    output = capsys.readouterr()
    assert "learning_rate=1000000.0, seed 1: particle 0: loss, gradient or update is" in output.err
    assert "0 read, 2 run, 1 failed" in output.out
    assert (together / "runs" / "together").is_dir()
    assert run(*fields, *asked, "--workdir", alone, "--together", 1) == 1
    assert not (alone / "runs" / "together").exists()
    capsys.readouterr()
    ours, theirs = metrics_of(together), metrics_of(alone)
    assert ours.keys() == theirs.keys() and len(ours) == 2
    for cell in ours:
        mine, other = ours[cell]["metrics"], theirs[cell]["metrics"]
        assert other.keys() - mine.keys() == {"cost/train_seconds", "cost/train_ms_per_example"}
        for key in mine.keys() - {"cost/predict_ms_per_example"}:
            rtol = 1e-2 if key.startswith("posthoc") else 2e-4  # the optimum of a search
            np.testing.assert_allclose(mine[key], other[key], rtol=rtol, atol=2e-6, err_msg=key)
        assert ours[cell]["config"] == theirs[cell]["config"]
        assert ours[cell]["sets"].keys() == {"test", "posthoc", "posthoc.fit", "validation"}
        folders = [w / "runs" / ours[cell]["run"] for w in (together, alone)]
        written = [read_config(folder) for folder in folders]
        assert written[0] == written[1] and written[0]["head"]["outputs"] == 8
        losses = [
            [(r["step"], r["loss"], r["loss/1"], r["learning_rate"]) for r in read_history(folder)]
            for folder in folders
        ]
        np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)
        assert Checkpoints(folders[0], read_only=True).steps()[-1] == 12
    chosen = json.loads((together / "selected.json").read_text())
    assert chosen["selected"] == "learning_rate=0.2" and chosen["regret"]["mean"] == 0
    assert list(chosen["left_out"]) == ["learning_rate=1000000.0"]
    assert "--config.optimiser.learning_rate=0.2" in chosen["command"]
    page = (together / "report.html").read_text()
    assert "Selected on validation NLL: learning_rate=0.2" in page and "digits[validation]" in page
    less = [*fields, "--sweep", "optimiser.learning_rate=[0.05, 0.2]", "--seeds", "1"]
    assert run(*less, "--workdir", together, "--isolate") == 0
    assert "2 read, 0 run, 0 failed" in capsys.readouterr().out
    with (together / "table.csv").open() as file:
        assert len(file.readlines()) == 3


# Several processes


def test_a_claim_is_held_by_one_process_and_freed_by_its_death(tmp_path):
    first, second = Claims(tmp_path / "c"), Claims(tmp_path / "c")
    first.begin()
    second.begin()
    with first.claim("a") as mine, second.claim("a") as other, second.claim("b") as another:
        assert (mine, other, another) == (True, False, True)
    code = (
        "import sys, time, pathlib\n"
        "from experiments.tables.claims import Claims\n"
        "with Claims(pathlib.Path(sys.argv[1])).claim('a') as mine:\n"
        "    print(mine, flush=True)\n"
        "    time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "c")],
                               stdout=subprocess.PIPE, text=True)  # fmt: skip
    assert process.stdout.readline() == "True\n"
    with first.claim("a") as mine:
        assert not mine
    process.send_signal(signal.SIGKILL)
    process.wait()
    with first.claim("a") as mine:
        assert mine
        first.fail("a", "why")
    assert second.failed("a") == "why" and second.failed("b") is None
    later = Claims(tmp_path / "c")
    later.begin()
    assert later.failed("a") is None  # a new command tries it again
    assert not list((tmp_path / "c").glob(".began*"))


def test_shards_are_numbered_from_zero():
    assert Shard.of("2/3") == Shard(2, 3)
    for text in ("3/3", "1", "-1/2", "0/0", "a/b"):
        with pytest.raises(ConfigError, match="I/N is needed"):
            Shard.of(text)


@pytest.mark.slow
def test_two_processes_share_the_cells_and_run_none_twice(programs, tmp_path):
    asked = [*SMALL, "--sweep", "backbone.activation=['relu', 'tanh']", "--seeds", "0"]
    started = [
        programs.start("sweep", *asked, "--workdir", str(tmp_path), "--shard", f"{i}/2")
        for i in range(2)
    ]
    results = [one.result() for one in started]
    counts = []
    for code, output in results:
        assert code == 0, output
        counts.append(
            [int(n) for n in re.search(r"cells:  (\d+) read, (\d+) run", output).groups()]
        )
    read, ran = np.sum(counts, axis=0)
    assert (ran, read) == (2, 2) and len(metrics_of(tmp_path)) == 2


@pytest.mark.slow
def test_workers_of_submitit_or_how_to_get_them(programs, tmp_path):
    asked = [*SMALL, "--sweep", "backbone.activation=['relu', 'tanh']", "--seeds", "0"]
    workers = ["--launcher", "local", "--workers", "2", "--resource", "timeout_min=5"]
    code, output = programs("sweep", *asked, "--workdir", str(tmp_path), *workers)
    if not importlib.util.find_spec("submitit"):
        assert code == 2 and "pip install '.[slurm]'" in output
        return
    assert code == 0, output
    assert "0 read, 2 run, 0 failed" in output
    assert len(metrics_of(tmp_path)) == 2 and (tmp_path / "report.html").is_file()
