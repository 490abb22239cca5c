"""What is wrong with a config is said before anything is compiled or written."""

import json
import shlex
import sys

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.data.source import load
from experiments.experiment import config as config_lib
from experiments.experiment.base import parse_arg
from experiments.experiment.build import setup
from experiments.train import train
from uncertainty import build
from uncertainty.build import ConfigError

DIGITS = "configs/digits/mlp.py"


@pytest.fixture(scope="module")
def compilations():
    """One entry for each program that XLA has compiled, or taken from its cache, since."""
    found = []

    def listen(event, duration, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            found.append(duration)

    jax.monitoring.register_event_duration_secs_listener(listen)
    return found


def test_compilations_are_seen(compilations):
    before = len(compilations)
    jax.jit(lambda x: x * np.random.default_rng().random())(1.0)
    assert len(compilations) == before + 1


REFUSED = {  # overrides -> what the message says, in this order
    # names and fields, with the nearest valid ones
    "optimizer": (dict(name="sgd"), "config.optimizer", "did you mean 'optimiser'?"),
    "backbone.name": ("mpl.MLP", "backbone.name", "'mpl'", "did you mean 'mlp'?"),
    "backbone.name ": ("mlp.MPL", "backbone.name", "'MPL'", "did you mean 'MLP'?"),
    "backbone.width": ((8,), "backbone.width", "did you mean 'widths'?"),
    "ensemble.name": ("singel", "ensemble.name", "did you mean 'single'?"),
    "head.output": (8, "head.output", "did you mean 'outputs'?"),
    "likelihood": ("sofmax", "likelihood.name", "did you mean 'softmax'"),
    "inference.name": ("particle", "inference.name", "did you mean 'particles'"),
    "inference.direction.name": ("indep", "inference.direction.name", "'independent'"),
    "inference.sise": (3, "inference.sise", "did you mean 'size'?"),
    "inference.executor": ("vmpa", "executor: 'vmpa'", "vmap"),
    "optimiser.name": ("adm", "'adm'", "did you mean 'adam'"),
    "optimiser.learning_rat": (1.0, "optimiser.learning_rat:", "did you mean 'learning_rate'?"),
    "optimiser.schedule.name": ("cosin", "optimiser.schedule.name", "'cosine'"),
    "optimiser.schedule.warmup": (3, "optimiser.schedule.warmup", "'warmup_steps'"),
    "logging.evry": (3, "config.logging.evry", "did you mean 'every'?"),
    "checkpoint.kep": (3, "config.checkpoint.kep", "did you mean 'keep'?"),
    "evaluation.batchsize": (3, "config.evaluation.batchsize", "'batch_size'"),
    "mesh.particles": (2, "mesh.particles", "did you mean 'particle'?"),
    "data.trian": ({}, "config.data.trian", "did you mean 'train'"),
    "data.train.name": ("digts", "data.train.name", "did you mean 'digits'"),
    "data.train.clases": ((1,), "data.train.clases", "did you mean 'classes'"),
    "data.train.split": ("trian", "data.train.split", "did you mean 'train'?"),
    "data.validation.split": ("valid", "data.validation.split", "'validation'"),
    "data.augment": ([dict(name="flp")], "data.augment[0].name", "did you mean 'flip'?"),
    "data.augment ": ([dict(name="flip", q=1)], "data.augment[0].q", "(valid: keys, p)"),
    "evaluators.test.name": ("clasification", "evaluators.test.name", "'classification'"),
    "evaluators.test.bns": (3, "evaluators.test.bns", "did you mean 'bins'?"),
    "evaluators.ood.sets.noise.shap": ((1,), "evaluators.ood.sets.noise.shap", "'shape'"),
    "evaluators.ood.sets.noise.name": ("noize", "evaluators.ood.sets.noise.name", "'noise'"),
    "evaluators.ood.data": (
        dict(name="fashion_mnst", split="test"),
        "evaluators.ood.data.name",
        "did you mean 'fashion_mnist'",
    ),
    "evaluators.more": (
        dict(name="ood", data=dict(name="noise", shape=(8, 8, 1))),
        "evaluators.more.sets",
        "missing",
    ),
    # types and ranges
    "steps": (10.5, "config.steps: 10.5"),
    "steps ": (True, "config.steps: True"),
    "batch_size": (0, "config.batch_size: 0"),
    "seed": (-1, "config.seed: -1"),
    "on_fault": ("ignore", "config.on_fault: 'ignore'", "'stop' or 'freeze'"),
    "logging.every": ("often", "config.logging.every: 'often'"),
    "logging.tensorboard": ("maybe", "config.logging.tensorboard: 'maybe'"),
    "logging.wandb": ("maybe", "config.logging.wandb: 'maybe'"),
    "logging.profile": ((7, 3), "config.logging.profile: (7, 3)"),
    "checkpoint.keep": (0, "config.checkpoint.keep: 0"),
    "evaluation.every": (-1, "config.evaluation.every: -1"),
    "sharding": (3, "config.sharding: 3"),
    "data": ("digits", "config.data: 'digits'"),
    "backbone": (3, "config.backbone: 3"),
    "backbone.widths": ("wide", "backbone.widths: 'wide'"),
    "head.outputs": ("8", "head.outputs: '8'", "int"),
    "optimiser.learning_rate": ("fast", "optimiser.learning_rate: 'fast'", "float"),
    "optimiser.learning_rate ": (-1.0, "optimiser.learning_rate: -1.0"),
    "optimiser.weight_decay": (0.1, "optimiser.weight_decay: 0.1"),
    "inference.size": (0, "inference: size: 0"),
    "mesh.data": ("all", "mesh.data: 'all'"),
    # combinations that cannot be
    "head.outputs ": (7, "head.outputs: 7", "8 classes"),
    "head": (
        dict(name="laplace.Laplace", outputs=8, curvature="sigmoid"),
        "head.curvature: 'sigmoid'",
        "likelihood is 'softmax'",
        "'gaussian'",
    ),
    "head ": (
        dict(
            name="heteroscedastic.Heteroscedastic",
            outputs=8,
            rank=2,
            mean=dict(name="sngp.Sngp", curvature="sigmoid"),
        ),
        "head.mean.curvature: 'sigmoid'",
        "'gaussian'",
    ),
    "likelihood ": ("gaussian", "'gaussian'", "targets", "digits"),
    "data.train": (dict(name="diabetes"), "evaluators.corruption.name", "for classification"),
    "evaluators.test": (dict(name="regression", data={"name": "digits"}), "for regression"),
    "batch_size ": (60, "batch_size: 60", "8 devices", "56 or 64"),
    "inference.accumulate": (3, "inference.accumulate: 3", "64"),
    "inference.accumulate ": (16, "batch_size / inference.accumulate: 4", "8"),
    "mesh": (dict(particle=4), "inference.size: 1", "4 devices"),
    "mesh ": (dict(particle=16), "16 devices, but there are 8"),
    "optimiser.weight_decay ": (((".*kernl", 1.0),), "'.*kernl' matches no parameter"),
    "sharding ": ((("nothing", ("model",)),), "'nothing' matches no parameter"),
    "optimiser.schedule.warmup_steps": (2000, "warmup_steps: 2000", "1000 steps"),
    "data.validation": (
        dict(name="digits", split="test"),
        "data.validation.classes: digits[test] has 10 classes",
        "trained on 8",
    ),
    "data.validation ": (None, "evaluation.every: 200, but there is no data.validation"),
    "data.augment  ": ([dict(name="crop", pad=-1)], "data.augment: pad: -1"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", REFUSED)
def test_refused_before_anything_is_compiled_or_written(name, tmp_path, compilations):
    value, *words = REFUSED[name]
    config = config_lib.load(DIGITS)
    # Text as it is: `override` would read a literal in it, as on a command line.
    *parents, last = name.strip().split(".")
    section = config
    for parent in parents:
        section = section[parent]
    section[last] = value
    before = len(compilations)
    with pytest.raises(ConfigError) as error:
        train(config, tmp_path / "run")
    message = str(error.value)
    positions = [message.find(word) for word in words]
    assert -1 not in positions and positions == sorted(positions), message
    assert len(compilations) == before
    assert not (tmp_path / "run").exists()


def test_tensorboard_without_tensorflow_is_refused_too(tmp_path, compilations, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)  # as where it is not installed
    config, before = config_lib.load(DIGITS, {"logging.tensorboard": True}), len(compilations)
    with pytest.raises(ConfigError, match=r"config\.logging\.tensorboard: True needs tensorflow"):
        train(config, tmp_path / "run")
    assert len(compilations) == before
    assert not (tmp_path / "run").exists()


def test_a_missing_section_is_named(tmp_path):
    config = config_lib.plain(config_lib.load(DIGITS))
    del config["likelihood"]
    with pytest.raises(ConfigError, match=r"config\.likelihood: missing"):
        train(config, tmp_path)


COMMANDS = {  # what follows `--config configs/digits/mlp.py --workdir DIR` -> the message
    "--config.optimiser.learning_rat=1": "optimiser.learning_rat: no such field; did you mean "
    "'learning_rate'?",
    "--config.optimiser.learning_rate=abc": "optimiser.learning_rate: 'abc' is a str; float",
    "--config.optimizer.learning_rate=1": "config.optimizer: no such section; did you mean "
    "'optimiser'?",
    "--config.steps.more=1": "config.steps: 1000 is not a section and has no field 'more'",
    "--config.steps": "'--config.steps': --config.field=value is needed",
    "--config.steps=1e3": "config.steps: 1000.0; a whole number from 1 is needed",
    "--confg.steps=3": "Unknown command line flag 'confg.steps'",
    "steps=3": "'steps=3': --config.field=value is needed",
    "--config=configs/digits/mpl.py": "config: no file 'configs/digits/mpl.py'; did you mean "
    "'configs/digits/mlp.py'",
    "--config=configs/digits/mlp.py:sise=3": "config option 'sise'",
    "--config=configs/digits/mlp.py:size=many": "config option 'size=many': int is needed",
    "--config=configs/methods.py": "config: configs/methods.py has no function get_config",
}


@pytest.mark.parametrize("arguments", COMMANDS)
def test_one_line_for_a_wrong_command(programs, arguments, tmp_path):
    run = tmp_path / "run"
    result = programs("train", "--config", DIGITS, "--workdir", run, *arguments.split())
    assert result.code == 2
    assert result.output.startswith(f"error: {COMMANDS[arguments]}")
    assert len(result.output.splitlines()) == 1
    assert not run.exists()


def test_required_flags(programs, tmp_path):
    for arguments in (["--config", DIGITS], ["--workdir", tmp_path]):
        result = programs("train", *arguments)
        assert result.code == 2 and "must have a value" in result.output


def test_fields_from_the_command_line():
    """Text becomes what the field holds, new fields are possible, and the last one counts."""
    flags = [
        "optimiser.learning_rate=3e-4",
        "optimiser.clip=1",
        "steps=7",
        "steps=8",
        "inference.executor=vmap",
        "logging.tensorboard=true",
        "data.train.path=2024",
        "data.train.split=0",
        "data.train.classes=(1, 2)",
        "data.validation=None",
        "mesh={'data': 2}",
        "evaluators.ood.sets.noise.name=a=b",
    ]
    overrides = config_lib.assignments([f"--config.{f}" for f in flags], "--config.")
    config = config_lib.plain(config_lib.load(DIGITS + ":size=3", overrides))
    assert config["optimiser"]["learning_rate"] == 3e-4
    assert config["optimiser"]["clip"] == 1 and config["optimiser"]["name"] == "adam"
    assert config["steps"] == 8
    assert config["inference"] == dict(
        name="particles", size=3, direction=dict(name="independent"), executor="vmap"
    )
    assert config["logging"]["tensorboard"] is True
    assert config["data"]["train"]["path"] == 2024
    assert config["data"]["train"]["split"] == "0"  # text already, so it stays text
    assert config["data"]["train"]["classes"] == (1, 2)
    assert config["data"]["validation"] is None
    assert config["mesh"] == {"data": 2}
    assert config["evaluators"]["ood"]["sets"]["noise"]["name"] == "a=b"


@settings(deadline=None)
@given(
    st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.booleans()
    | st.none()
    | st.lists(st.integers(), max_size=3)
)
def test_a_value_survives_its_way_through_text(value):
    config = config_lib.load(DIGITS)
    config_lib.override(config, "optimiser.new", repr(value))
    assert config.optimiser.new == value and type(config.optimiser.new) is type(value)


def test_parse_arg():
    assert dict(parse_arg(None, size=1)) == dict(runlocal=False, size=1)
    arg = parse_arg("runlocal,size=4,rate=1,name=x=y", size=1, rate=0.5, name="a")
    assert dict(arg) == dict(runlocal=True, size=4, rate=1.0, name="x=y")
    assert isinstance(arg.rate, float)
    assert not parse_arg("flag=false", flag=True).flag
    assert parse_arg("", size=1).size == 1
    for text, message in {
        "sise=3": "config option 'sise'",
        "size=x": "config option 'size=x': int is needed",
        "size=1.5": "int is needed",
        "runlocal=maybe": "true or false",
    }.items():
        with pytest.raises(ValueError, match=message):
            parse_arg(text, size=1)


@pytest.mark.slow
def test_runlocal_from_the_command_line(programs, tmp_path):
    result = programs("train", "--config", DIGITS + ":runlocal", "--workdir", tmp_path / "run")
    assert result.code == 0, result.output
    assert "4/4" in result.output and "Accuracy" in result.output


LITERALS = {  # text of a command line -> what it stands for, in JSON and in Python alike
    '{"name": "npz", "standardise": true, "mean": null}': dict(
        name="npz", standardise=True, mean=None
    ),
    "{'name': 'npz', 'standardise': True, 'mean': None}": dict(
        name="npz", standardise=True, mean=None
    ),
    "{'a': [true, {'b': none}], 'c': (False, NULL)}": {
        "a": [True, {"b": None}],
        "c": (False, None),
    },
    "[1, 2.5, 'x']": [1, 2.5, "x"],
    "(1, (2,))": (1, (2,)),
    "true": True,
    "False": False,
    "null": None,
    "None": None,
    "1e-3": 1e-3,
    "'true'": "true",
    "a=b": "a=b",
    "test[:10%]": "test[:10%]",
    "": "",
    '"{"': "{",
}


@pytest.mark.parametrize("text", LITERALS)
def test_text_of_a_command_line(text):
    assert config_lib.value_of(text, "x") == LITERALS[text]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@settings(max_examples=30)
@given(st.lists(JSON) | st.dictionaries(st.text(), JSON))
def test_json_and_python_are_both_read(value):
    assert config_lib.value_of(json.dumps(value), "x") == value
    if "inf" not in repr(value):  # which is a name in Python
        assert config_lib.value_of(repr(value), "x") == value


MALFORMED = {  # text -> where it fails
    "{": "'{' was never closed (character 1)",
    '{"name": "npz"': "'{' was never closed (character 1)",
    "{'name': npz}": "'npz' needs quotes (character 10)",
    "[1, 2": "'[' was never closed (character 1)",
    "(1, x)": "'x' needs quotes (character 5)",
    "{'a': f(1)}": "'f' needs quotes (character 7)",
    "[" * 10_000: "is not a dict or list",
    "{[]: 1}": "is not a dict or list",
    "[{1, 2}]": "pairs 'name': value are needed (character 2)",
}


@pytest.mark.parametrize("text", MALFORMED, ids=lambda text: text[:16])
def test_what_begins_as_a_dict_or_list_has_to_be_one(text):
    with pytest.raises(ConfigError, match=r"^config\.data\.train: ") as error:
        config_lib.load(DIGITS, {"data.train": text})
    assert MALFORMED[text] in str(error.value)
    assert config_lib.load(DIGITS, {"data.train.split": "[1"}).data.train.split == "[1"  # is text


def test_names_of_fields_are_text_without_full_stops():
    for text in ("{1: 2}", "{'a': [{'b.c': 1}]}"):
        with pytest.raises(ConfigError, match=r"config\.data\.train.*is not a field name"):
            config_lib.load(DIGITS, {"data.train": text})


def test_text_gives_way_to_a_dict_alone():
    config = config_lib.load(DIGITS, {"likelihood.name": "{'name': 'softmax'}"})
    assert dict(config.likelihood.name) == {"name": "softmax"}


RENAMED = {  # a name -> the field of another part that is left, and the section that has it not
    "data.train.name=breast_cancer": None,
    "evaluators.ood.sets.noise.name=digits": ("evaluators.ood.sets.noise.shape", "noise", "split"),
    "backbone.name=resnet.ResNet": ("backbone.widths", "mlp.MLP", "resnet.ResNet"),
    "optimiser.schedule.name=constant": None,
    "head.name=sngp.Sngp": None,
    "optimiser.name=sgd": None,
    "backbone.name=nothing": None,  # the message is of those who look for it
}


@pytest.mark.parametrize("argument", RENAMED)
def test_fields_of_another_part_are_said_to_be(argument):
    overrides = config_lib.assignments([argument])
    if RENAMED[argument] is None:
        config_lib.load(DIGITS, overrides)
        return
    field, former, kept = RENAMED[argument]
    with pytest.raises(ConfigError) as error:
        config_lib.load(DIGITS, overrides)
    message = str(error.value)
    assert (
        message.startswith(f"config.{field}: comes from the config's") and repr(former) in message
    )
    section, _, text = message.partition("--config.")[2].partition("=")
    assert kept in text
    config_lib.load(DIGITS, {section: shlex.split(text)[0]})  # the advice is true


def test_fields_given_with_the_new_name_are_the_users_own():
    overrides = {"backbone.name": "resnet.ResNet", "backbone.widths": "(8,)"}
    assert config_lib.load(DIGITS, overrides).backbone.widths == (8,)  # and is refused as such


def test_a_name_alone_is_no_data_set(tmp_path):
    with pytest.raises(ConfigError, match=r"config\.data\.train: 'digits' is not a dict of fields"):
        train(config_lib.load(DIGITS, {"data.train": "digits"}), tmp_path / "run")
    with pytest.raises(ConfigError, match=r"evaluators\.test\.data: 'digits' is not a dict"):
        load("digits", "evaluators.test.data")


def test_decay_is_of_rules():
    config = config_lib.plain(config_lib.load(DIGITS, {"optimiser.weight_decay": "0.1"}))
    with pytest.raises(
        ConfigError, match=r"weight_decay: 0\.1; a list of rules.*such as \[\['\.\*', 0\.1\]\]"
    ):
        build.optimiser(config)
    plain = dict(name="adam", learning_rate=0.1)
    updates = [
        one_step(build.optimiser({**config, "optimiser": plain | more}))
        for more in ({}, *(dict(name=n, weight_decay=[[".*", 0.1]]) for n in ("adam", "adamw")))
    ]
    np.testing.assert_allclose(np.array(updates[1:]) - updates[0], -0.1 * 0.1 * 2, rtol=1e-5)
    with pytest.raises(ConfigError, match=r"optimiser\.weight_decay: adamw needs it"):
        build.optimiser({**config, "optimiser": dict(name="adamw", learning_rate=0.1)})


def one_step(optimiser):
    params, gradient = {"w": np.float32(2)}, {"w": np.float32(3)}
    return optimiser.update(gradient, optimiser.init(params), params)[0]["w"]


FILES = {  # what a file says -> the message
    "def get_config(:": "line 1: ",
    "x = 1\nraise KeyError('no')": "line 2: KeyError: 'no'",
    "import nothing_at_all": "line 1: ModuleNotFoundError: No module named 'nothing_at_all'",
    "def get_config(arg=None):\n    return 1 / 0": "line 2: ZeroDivisionError: division by zero",
    "def get_config(arg=None):\n    return {}": "returns {}, not a ConfigDict",
    "def get_config():\n    return 3": "takes no options, but has 'a=1' after it",
    "get_config = 3": "has no function get_config",
}


@pytest.mark.parametrize("text", FILES)
def test_a_file_that_is_no_config_is_named(text, tmp_path):
    file = tmp_path / "file.py"
    file.write_text(text)
    with pytest.raises(ConfigError) as error:
        config_lib.load(f"{file}:a=1")
    message = str(error.value)
    assert message.startswith("config: ") and str(file) in message and FILES[text] in message
    assert "\n" not in message


def test_other_files_and_other_directories(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=r"config: README\.md is not a Python file"):
        config_lib.load("README.md")
    monkeypatch.chdir(tmp_path)
    assert config_lib.load(DIGITS + ":size=3").inference.size == 3  # the project's
    with pytest.raises(ConfigError, match=r"config: no file 'configs/digits/mpl\.py'"):
        config_lib.load("configs/digits/mpl.py")


def test_fields_that_both_parts_have_are_kept_and_told(caplog):
    config = config_lib.load(DIGITS, {"optimiser.name": "rmsprop"})
    assert config.optimiser.learning_rate == 1e-3
    (record,) = caplog.records
    assert (
        "config.optimiser: 'rmsprop' keeps fields of 'adam': learning_rate=0.001" in record.message
    )
    assert "\n" not in record.message
    config_lib.load(DIGITS, {"optimiser.name": "rmsprop"})
    assert len(caplog.records) == 1  # once


SNAPSHOTS = dict(name="snapshots", steps=2, size=1, optimiser=dict(name="sgld", learning_rate=0.1))
TOGETHER = [  # changes of configs/digits/mlp.py:runlocal that each part would take by itself
    (
        {
            "data.particles": dict(name="folds", size=3),
            "stages": [dict(name="laplace")],
            "head": dict(name="laplace.Laplace", outputs=8),
        },
        r"stages\[0\]: 'laplace' passes over all of data\.train",
    ),
    (
        {
            "data.particles": dict(name="folds", size=4, use="fold"),
            "inference.prior": dict(name="gaussian"),
            "optimiser.weight_decay": (),
        },
        r"data\.particles: gives particles different numbers",
    ),
    (
        {"data.augment": [dict(name="view", to="x2", augment=["flip"])]},
        r"nothing reads the view 'x2'",
    ),
    (
        {"data.augment": [dict(name="crop", pad=1, size=6)]},
        r"data\.augment: makes inputs of shape \(6, 6, 1",
    ),
    ({"objective": dict(name="mean_teacher", stream="x")}, r"objective\.stream: 'x' is no stream"),
    ({"optimiser.learning_rate": float("inf")}, r"optimiser\.learning_rate: inf must be finite"),
    ({"optimiser.weight_decay": [[".*", -0.5]]}, r"optimiser\.weight_decay: -0\.5 for '\.\*'"),
]


@pytest.mark.parametrize(("changes", "message"), TOGETHER, ids=[m[:30] for _, m in TOGETHER])
def test_what_does_not_go_together_is_refused_before_training(changes, message):
    config = config_lib.load("configs/digits/mlp.py:runlocal,size=2")
    for name, value in changes.items():
        config_lib.override(config, name, value)
    with pytest.raises(ConfigError, match=message):
        setup(config, evaluated=False)


def test_a_stage_that_trains_has_the_n_of_a_particle():
    """40 examples of each particle, not all of the training data: the noise of its sampler."""
    config = config_lib.load("configs/digits/mlp.py:runlocal,size=2")
    for name, value in {
        "data.particles": dict(name="per_class", size=5),
        "stages": [SNAPSHOTS],
        "inference.prior": dict(name="gaussian"),
        "optimiser.weight_decay": (),
    }.items():
        config_lib.override(config, name, value)
    experiment = setup(config, evaluated=False)
    key = jax.random.key(0, impl="unsafe_rbg")  # sooner compiled
    state = experiment.inference.init(key, experiment.example())
    ((_, stage),) = experiment.stages
    batch = next(experiment.batches(0))[1]
    carry = stage.begin(state, experiment.example())
    moved, _, _ = jax.jit(stage.update)(state, carry, batch)
    change = jax.tree.map(lambda a, b: a - b, moved.params, state.params)
    size = np.concatenate([np.ravel(a) for a in jax.tree.leaves(change)])
    # theta - eta g + sqrt(2 eta / N) xi, with eta 0.1 and N 40; the gradient adds little.
    assert np.std(size) == pytest.approx((2 * 0.1 / 40) ** 0.5, rel=0.05)
