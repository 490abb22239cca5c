"""From configs to objects: what is found, and how it is refused when it is wrong."""

import copy
import json
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uncertainty import build
from uncertainty.build import ConfigError
from uncertainty.specs import nearest, suggestion

CONFIG = dict(
    backbone=dict(name="mlp.MLP", widths=(6, 4)),
    ensemble=dict(name="single"),
    head=dict(name="dense.Dense", outputs=3),
    likelihood=dict(name="softmax"),
    inference=dict(name="particles", size=2, direction=dict(name="independent")),
    steps=10,
    optimiser=dict(name="adam", learning_rate=1e-2, schedule=dict(name="cosine", warmup_steps=2)),
)


def changed(field, value):
    """CONFIG with one dotted field replaced, or removed where the value is `...`."""
    config = copy.deepcopy(CONFIG)
    *parents, last = field.split(".")
    section = config
    for parent in parents:
        section = section[parent]
    if value is ...:
        del section[last]
    else:
        section[last] = value
    return config


def init(config):
    model = build.model(config)
    return model, *jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 5)))


def kernel(params):
    return np.asarray(params["backbone"]["dense0"]["kernel"])


def test_names_are_files_and_attributes():
    from uncertainty.backbones.mlp import MLP
    from uncertainty.inference.particles import particles

    assert build.resolve("backbones", "mlp.MLP", "backbone") is MLP
    assert build.resolve("inference", "particles", "inference") is particles
    assert build.resolve("inference", "particles.particles", "inference") is particles


def test_a_name_alone_stands_for_a_dict():
    config = changed("ensemble", "single")
    config |= dict(likelihood="softmax", inference="particles")
    assert build.network(config) == build.network(CONFIG)
    inference = build.inference(config)
    assert inference.init(jax.random.key(0), jnp.zeros((1, 5))).key.shape == (1,)


def test_a_config_survives_json():
    again = json.loads(json.dumps(changed("optimiser.weight_decay", (("kernel", 0.1),))))
    assert build.network(again) == build.network(CONFIG)  # lists have become tuples again
    inference = build.inference(again)
    state = inference.init(jax.random.key(0), jnp.zeros((1, 5)))
    batch = dict(x=jnp.ones((4, 5)), y=jnp.zeros(4, int))
    assert jax.eval_shape(inference.update, state, batch)[1]["loss"].shape == (2,)


def test_the_same_config_builds_equal_networks():
    assert build.network(CONFIG) == build.network(copy.deepcopy(CONFIG))
    assert hash(build.network(CONFIG)) == hash(build.network(CONFIG))


def test_nested_layers_are_factories_with_their_fields_set():
    from uncertainty.layers.dropout import Dropout

    network = build.network(changed("backbone.dropout", dict(name="dropout.Dropout", rate=0.25)))
    layer = network.backbone.dropout(name="here")
    assert isinstance(layer, Dropout) and layer.rate == 0.25


def test_nested_layers_drop_what_they_should():
    model, params, _ = init(
        changed(
            "backbone",
            dict(name="mlp.MLP", widths=(2048,), dropout=dict(name="dropout.Dropout", rate=0.25)),
        )
    )
    params["head"]["logits"]["kernel"] = jnp.ones((2048, 3)) / 2048  # exact sums in any order
    params["backbone"]["dense0"] = dict(kernel=jnp.zeros((5, 2048)), bias=jnp.ones(2048))
    x = jnp.zeros((4, 5))
    forward = jax.jit(model.forward, static_argnames="train")
    plain = forward(params, {}, x, jax.random.key(1), train=False)[0].mean
    np.testing.assert_allclose(plain, 1, rtol=1e-5)
    dropped = forward(params, {}, x, jax.random.key(1), train=True)[0].mean
    # The mean of 2048 Bernoullis(3/4) / (3/4): standard error sqrt(1/4 * 3/4 / 2048) * 4/3 = 0.013.
    assert 0 < np.abs(dropped - 1).max() < 0.08


def test_fields_that_a_nested_layer_lacks_wait_for_the_caller():
    spec = dict(name="feed_forward.FeedForward", dropout=dict(name="dropout.Dropout", rate=0.5))
    config = changed("backbone", dict(name="vit.ViT", variant="tiny", swaps={"1": spec}))
    layer = build.network(config).backbone.swaps[1](mlp_dim=7)
    assert layer.mlp_dim == 7 and layer.dropout().rate == 0.5


@pytest.mark.parametrize(
    ("spec", "check"),
    [
        (dict(name="constant", value=0.5), lambda w: (w == 0.5).all()),
        (dict(name="zeros_init"), lambda w: (w == 0).all()),
        # 300 draws: their standard deviation has a standard error of 4%.
        (dict(name="normal", stddev=7.0), lambda w: 5.5 < w.std() < 8.5),
        (dict(name="uniform", scale=2.0), lambda w: w.min() >= 0 and 1.5 < w.max() <= 2),
    ],
    ids=lambda value: value.get("name") if isinstance(value, dict) else "",
)
def test_fields_that_end_in_init_are_initialisers(spec, check):
    config = changed("backbone", dict(name="mlp.MLP", widths=(60,), kernel_init=spec))
    assert check(kernel(init(config)[1]))


def test_a_missing_head_field_may_have_an_initialiser_of_its_own():
    config = changed(
        "head", dict(name="dense.Dense", outputs=3, bias_init=dict(name="constant", value=-10.0))
    )
    np.testing.assert_array_equal(init(config)[1]["head"]["logits"]["bias"], -10)


def test_the_learning_rate_that_is_logged_is_the_one_that_is_used():
    config = changed("optimiser.name", "sgd")
    optimiser, rate = build.optimiser(config), build.schedule(config)
    params = dict(w=jnp.ones(1))
    state = optimiser.init(params)
    for step in range(10):
        updates, state = optimiser.update(dict(w=jnp.ones(1)), state, params)
        np.testing.assert_allclose(-updates["w"], rate(step), rtol=1e-6)


@pytest.mark.parametrize(
    ("word", "valid", "suggested"),
    [
        ("singel", ["single", "epinet", "multi_head"], "'single'"),  # 10 / 12 and 6 / 12
        ("abcd", ["abcdefg", "abcdef", "abcde"], "'abcde' or 'abcdef'"),  # 8 / 9, 8 / 10, 8 / 11
        ("abcd", ["abcdefg", "abcde"], "'abcde'"),
        ("abcd", ["abcde", "abcde", "wxyz"], "'abcde'"),
        ("abcd", ["wxyz"], None),
        ("abcd", [], None),
    ],
)
def test_a_second_name_is_suggested_if_it_is_about_as_near(word, valid, suggested):
    hint = f"did you mean {suggested}? " if suggested else ""
    assert suggestion(word, valid) == hint
    assert nearest(word, valid) == f"{hint}(valid: {', '.join(sorted(valid))})"


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        # names, with the nearest
        ("backbone.name", "mpl.MLP", r"backbone.name: no file 'mpl' .*did you mean 'mlp'"),
        ("backbone.name", "mlp.MLPP", r"backbone.name: .*no 'MLPP'; did you mean 'MLP'"),
        ("backbone.name", "mlp", r"backbone.name: .*no 'mlp'; .*valid: MLP"),
        ("backbone.name", "mlp.nn", r"no 'nn'"),  # imported there, not defined
        ("backbone.name", "inputs.check_image", r"did you mean 'check_images'"),
        ("ensemble.name", "multihead", r"ensemble.name: .*did you mean 'multi_head'"),
        ("head.name", 3, r"head.name: 3 is not a name"),
        ("likelihood.name", "softmx", r"likelihood.name: .*did you mean 'softmax'"),
        (
            "inference.direction",
            dict(name="svgd", annealing=dict(name="linear")),
            r"inference.direction.annealing.steps: missing; linear needs it",
        ),
        (
            "inference.direction",
            dict(name="svgd", kernel=dict(name="rbf", width=1.0)),
            r"inference.direction.kernel.width: no such field",
        ),
        ("optimiser.name", "adm", r"optimiser.name: .*did you mean 'adam'"),
        ("optimiser.name", "optimiser", r"no 'optimiser'; \(valid: adam, adamw, lars, lion,"),
        ("optimiser.schedule.name", "cosin", r"optimiser.schedule.name: .*did you mean 'cosine'"),
        ("inference.name", "particle", r"inference.name: .*did you mean 'particles'"),
        ("inference.direction.name", "independant", r"inference.direction.name: .*'independent'"),
        # fields, with the nearest
        ("backbone.width", (3,), r"backbone.width: no such field; did you mean 'widths'"),
        ("backbone.name_", 1, r"backbone.name_: no such field"),
        ("ensemble.backbone", "x", r"ensemble.backbone: no such field"),  # given by the program
        ("head.output", 3, r"head.output: no such field; did you mean 'outputs'"),
        ("likelihood.temprature", 2.0, r"likelihood.temprature: .*'temperature'"),
        ("optimiser.beta1", 0.9, r"optimiser.beta1: no such field; .*b1.*learning_rate"),
        ("optimiser.weigth_decay", (), r"optimiser.weigth_decay: .*did you mean 'weight_decay'"),
        ("optimiser.nesterov", True, r"optimiser.nesterov: no such field"),  # not Adam's
        ("optimiser.schedule.warmup", 2, r"optimiser.schedule.warmup: .*'warmup_steps'"),
        ("optimiser.schedule.total_steps", 2, r"total_steps: no such field"),
        ("inference.sise", 2, r"inference.sise: no such field; did you mean 'size'"),
        ("inference.model", 2, r"inference.model: no such field"),
        ("inference.direction.over", 2, r"inference.direction.over: no such field"),
        # missing fields and sections
        ("head.outputs", ..., r"head.outputs: missing; Dense needs it"),
        ("optimiser.learning_rate", ..., r"optimiser.learning_rate: missing"),
        ("backbone.name", ..., r"backbone: .*neither a name nor a dict"),
        ("optimiser.name", ..., r"optimiser: .*neither a name nor a dict"),
        ("likelihood", ..., r"likelihood: missing from the config"),
        ("head", None, r"head: None is neither a name nor a dict"),
        # types
        ("head.outputs", "3", r"head.outputs: '3' is a str; int is needed"),
        ("head.outputs", 3.0, r"head.outputs: 3.0 is a float; int is needed"),
        ("head.outputs", True, r"head.outputs: True is a bool; int is needed"),
        ("head.outputs", None, r"head.outputs: None is a NoneType; int is needed"),
        ("backbone.widths", 6, r"backbone.widths: 6 is a int; a list of int is needed"),
        ("backbone.widths", (6, "a"), r"backbone.widths: .*; a list of int is needed"),
        ("backbone.activation", 1, r"backbone.activation: 1 is a int; str is needed"),
        ("backbone.dropout", 0.1, r"backbone.dropout: 0.1 is a float; a dict with a name or None"),
        ("backbone.dropout", dict(rate=0.1), r"backbone.dropout: .*a dict with a name or None"),
        ("backbone.kernel_init", "zeros", r"backbone.kernel_init: 'zeros' is a str; a dict with"),
        ("optimiser.learning_rate", "1e-3", r"optimiser.learning_rate: '1e-3' .*float is needed"),
        ("optimiser.clip", "1", r"optimiser.clip: '1' is a str; float or None is needed"),
        ("optimiser.weight_decay", 0.1, r"optimiser.weight_decay: 0.1; a list of rules"),
        ("optimiser.weight_decay", (0.1,), r"optimiser.weight_decay: 0.1 is not a pair"),
        ("inference.size", 2.5, r"inference.size: 2.5 is a float; int is needed"),
        # nested
        (
            "backbone.dropout",
            dict(name="dropot.Dropout", rate=0.1),
            r"backbone.dropout.name: no file 'dropot' .*did you mean 'dropout'",
        ),
        (
            "backbone.dropout",
            dict(name="dropout.Dropout", rat=0.1),
            r"backbone.dropout.rat: no such field; did you mean 'rate'",
        ),
        (
            "backbone.dropout",
            dict(name="dropout.Dropout", rate="0.1"),
            r"backbone.dropout.rate: '0.1' is a str; float is needed",
        ),
        (
            "backbone.kernel_init",
            dict(name="he_norml"),
            r"backbone.kernel_init.name: no initialiser 'he_norml'; did you mean 'he_normal'",
        ),
        (
            "backbone.kernel_init",
            dict(name="normal", std=0.1),
            r"backbone.kernel_init.std: no such field; did you mean 'stddev'",
        ),
        ("backbone.kernel_init", dict(name="constant"), r"backbone.kernel_init: .*value"),
        # values that the callee refuses
        ("backbone.activation", "rleu", r"backbone: activation: 'rleu'"),
        ("likelihood.temperature", 0.0, r"likelihood: temperature: 0.0 must be positive"),
        ("optimiser.learning_rate", -1.0, r"optimiser.learning_rate: -1.0 must not be negative"),
        ("optimiser.schedule.warmup_steps", 11, r"optimiser.schedule: warmup_steps: 11; .*10"),
        ("inference.size", 0, r"inference: size: 0"),
        ("inference.accumulate", 0, r"inference: accumulate: 0"),
        ("inference.executor", "vmapp", r"inference: executor: 'vmapp'"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, str) else "",
)
def test_mistakes_are_refused_with_the_field_the_value_and_what_is_allowed(field, value, message):
    with pytest.raises(ConfigError) as raised:
        build.inference(changed(field, value))
    assert re.search(message, str(raised.value)), str(raised.value)


def test_an_error_lists_all_that_is_valid():
    with pytest.raises(ConfigError) as raised:
        build.model(changed("likelihood.name", "xyz"))
    assert str(raised.value).endswith("(valid: gaussian, sigmoid, softmax)")


def test_no_part_is_called_with_wrong_fields():
    """A mistake in a later part is found although the earlier ones are right."""
    with pytest.raises(ConfigError, match=r"head\.outputs"):
        build.network(changed("head.outputs", "many"))


def test_flax_fields_are_not_fields_of_a_config():
    for field in ("parent", "name"):
        with pytest.raises(ConfigError):
            build.make("backbones", {"name": "mlp.MLP", field: None}, "backbone")
    assert isinstance(build.make("backbones", "mlp.MLP", "backbone"), nn.Module)
