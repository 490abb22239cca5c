"""Which classes go to which experts: against a loop over tokens, with the router's kernel alone."""

import functools
import json

import jax
import numpy as np
import pytest
from sklearn.metrics import mutual_info_score

from experiments.data.source import load
from experiments.evaluate import evaluate, restore
from experiments.evaluators import routing
from experiments.experiment import config as config_lib
from experiments.experiment.base import base
from experiments.experiment.build import setup
from experiments.prediction.predictor import Predictor
from experiments.prediction.trained import Trained
from experiments.train import train
from tests.uncertainty.routes import fill
from uncertainty import build
from uncertainty.layers.moe import monitor

P, M, E, T, B, SIZE = 2, 2, 4, 4, 32, 2  # E: of each member
SLOTS = {1: 2, 2: 3}  # ceil(2 n 4 0.7 / 4) of n examples
DATA = dict(name="digits", split="test", classes=(0, 1, 2))  # 121 examples: a batch is filled up


def config_of(**mesh):
    config = base()
    config.data.train = dict(DATA, split="train")
    config.batch_size, config.evaluation.batch_size = 16, B
    config.backbone = dict(
        name="vit.ViT",
        variant="tiny",
        depth=1,
        width=8,
        num_heads=2,
        mlp_dim=8,
        pooling="gap",
        expert_blocks=(0,),
        experts=dict(
            name="experts.MoE",
            num_experts=M * E,
            split_rngs=True,
            router=dict(
                name="routers.TopK", k=2, group_size=SIZE, multiple_of=1, capacity_factor=0.7
            ),
        ),
    )
    config.ensemble = dict(name="e3", size=M)
    config.head.outputs = 3
    config.inference.update(size=P, executor="vmap")
    config.optimiser = dict(name="sgd", learning_rate=0.1)
    config.steps, config.logging.every, config.mesh = 4, 2, mesh
    config.evaluators = dict(routing=dict(name="routing", data=DATA))
    return config_lib.plain(config)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("routing") / "run"
    experiment = train(config_of(data=1), workdir)
    metrics, failures = evaluate(experiment, workdir, show=False)
    assert not failures
    with np.load(workdir / "evaluation" / "test" / "scores.npz") as file:
        arrays = dict(file)
    return experiment, restore(experiment, workdir)[0], metrics, arrays, workdir


@functools.cache
def before_router():
    """params, collections, x -> the tokens [P, 1, B, T, 8] that come to the router."""
    network = build.network(config_of(data=1))

    def apply(params, collections, x):
        capture = dict(
            mutable=["intermediates"],
            capture_intermediates=lambda module, _: module.name == "norm1",
        )
        variables = {"params": params, **collections}
        found = network.apply(variables, x, train=False, **capture)[1]["intermediates"]
        return found["backbone"]["block00"]["norm1"]["__call__"][-1]

    return jax.jit(jax.vmap(apply, (0, 0, None)))


@pytest.mark.slow
def test_predictions_are_those_of_the_examples_alone_whatever_the_size_of_a_batch(run):
    experiment, state, *_ = run
    source = load(DATA)
    x = source.gather(np.arange(len(source)))["x"]
    predict = jax.jit(experiment.inference.predict)
    pairs, last = predict(state, x[:-1]).mean, predict(state, x[-1:]).mean  # groups that are full
    expected = np.concatenate([pairs, last], axis=1)
    features = []
    for size in (22, 122):  # multiples of the group's size
        predictor = Predictor(experiment, state)
        predictor.runs[0].batch_size = size
        features.append(predictor.features(source)[0])
        if size == 22:
            np.testing.assert_allclose(predictor(source).mean, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(*features, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_full_batch_has_no_mask(run):
    experiment, state, *_ = run
    batches = [b for b, _ in Trained(experiment, state)._batches(load(DATA), ("x",))]
    assert [set(batch) for batch in batches] == [{"x"}] * 3 + [{"x", "mask"}]
    assert np.sum(batches[-1]["mask"]) == 121 - 96


def routed(state, x, count):
    """What each expert works on of each example [P, M, B, E], and what is dropped [P, M, B].

    The groups are of the first `count` examples; others are nowhere.
    """
    tokens = before_router()(state.params, state.collections, x)
    tokens = np.asarray(tokens).reshape(P, B, T, 8)
    kernel = np.asarray(state.params["backbone"]["block00"]["feed_forward"]["router"]["kernel"])
    share, dropped = np.zeros((P, M, B, E)), np.zeros((P, M, B))
    for p, m in np.ndindex(P, M):
        for g in range(0, count, SIZE):
            group = tokens[p, g : min(g + SIZE, count)]
            scores = np.exp(group.reshape(-1, 8) @ kernel[p, :, m])
            _, where = fill(scores / scores.sum(1, keepdims=True), 2, SLOTS[len(group)], False)
            for s, places in enumerate(where):
                for place in places:
                    if place is None:
                        dropped[p, m, g + s // T] += 0.5 / T
                    else:
                        share[p, m, g + s // T, place[0]] += 1 / T
    return share, dropped


@pytest.mark.slow
def test_classes_by_experts_are_a_loop_over_tokens(run):
    _, state, metrics, arrays, _ = run
    source = load(DATA)
    N = len(source)
    assert N % B
    shares, dropped = np.zeros((P, M, N, E)), np.zeros((P, M, N))
    for start in range(0, N, B):
        batch = source.gather(np.minimum(np.arange(start, start + B), N - 1))
        end = min(start + B, N)
        both = routed(state, batch["x"], end - start)
        shares[:, :, start:end], dropped[:, :, start:end] = (a[:, :, : end - start] for a in both)
    table = np.stack([shares[:, :, source.y == k].mean(2) for k in range(3)], axis=2)
    np.testing.assert_allclose(arrays["routing/block00/share"], table, atol=1e-5)
    load_of = shares.mean(2)
    np.testing.assert_allclose(arrays["routing/block00/load"], load_of, atol=1e-5)
    assert 0.02 < dropped.mean() < 0.9
    assert metrics["routing/block00/dropped"] == pytest.approx(dropped.mean(), rel=1e-5)
    relative = load_of.reshape(P, M * E) / load_of.mean((1, 2))[:, None]
    assert metrics["routing/block00/load_max"] == pytest.approx(relative.max(1).mean(), rel=1e-5)
    assert metrics["routing/block00/load_min"] == pytest.approx(relative.min(1).mean(), rel=1e-5)
    counts = [
        [T * shares[p, m, source.y == k].sum(0) for k in range(3)] for p, m in np.ndindex(P, M)
    ]
    counts = np.rint(counts).astype(int)  # scikit-learn cuts off fractions
    information = np.mean([mutual_info_score(None, None, contingency=c) for c in counts])
    assert information > 0.001
    found = metrics["routing/block00/mutual_information"]
    assert found == pytest.approx(information, rel=1e-4)


@pytest.mark.slow
def test_counts_of_the_last_step_are_logged(run):
    _, state, _, _, workdir = run
    counts = state.collections["routing"]["backbone"]["block00"]["feed_forward"]["router"]
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records] == [2, 4]
    assert records[-1]["routing/block00/dropped"] == pytest.approx(np.mean(counts["dropped"]))
    assert 0 < records[-1]["routing/block00/dropped"] < 1
    extremes = []
    for p in range(P):
        each = np.asarray(counts["load"][p]).ravel() / np.mean(counts["load"][p])
        extremes.append((each.min(), each.max()))
    low, high = np.mean(extremes, axis=0)
    assert records[-1]["routing/block00/load_min"] == pytest.approx(low, rel=1e-5)
    assert records[-1]["routing/block00/load_max"] == pytest.approx(high, rel=1e-5)
    found = {k: v for k, v in records[-1].items() if k.startswith("routing/")}
    assert monitor.text(found) == (
        f"dropped {np.mean(counts['dropped']):.0%} load {low:.2g}-{high:.2g}"
    )


@pytest.mark.slow
def test_experts_on_several_devices_have_the_routes_of_one(run):
    _, state, metrics, arrays, _ = run
    experiment = setup(config_of(particle=2, expert=4))
    placed = jax.device_put(state, experiment.shardings)
    found = dict(routing.routing(DATA).run(Predictor(experiment, placed)))
    for key, value in found.items():
        expected = arrays[key] if isinstance(value, np.ndarray) else metrics[key]
        np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        (np.eye(3), np.log(3)),  # an expert for each class
        (np.outer([1, 2, 3], [4, 0, 5]), 0.0),  # all classes alike, one expert not used
        ([[2, 0, 0, 0], [0, 1, 1, 0]], np.log(2)),
        (np.zeros((2, 2)), 0.0),
    ],
)
def test_mutual_information_of_known_tables(counts, expected):
    found = routing.mutual_information(np.stack([np.asarray(counts, float)] * 2))
    np.testing.assert_allclose(found, [expected] * 2, atol=1e-12)


def test_names_are_what_tells_layers_apart():
    names = {
        "backbone/block01/feed_forward/router/load": "block01",
        "backbone/block11/feed_forward/per_example": "block11",
        "stem/backbone/block01/feed_forward/router/dropped": "stem/block01",
        "router/load": "experts",
    }
    assert {path: monitor.name_of(path) for path in names} == names


@pytest.mark.slow
def test_a_network_without_experts_is_refused():
    config = base()
    config.mesh, config.backbone = dict(data=1), dict(name="mlp.MLP", widths=(4,))
    config.evaluation.batch_size = 500
    experiment = setup(config)
    with pytest.raises(ValueError, match="routing: the network has no experts"):
        data = dict(name="digits", split="test")
        list(routing.routing(data).run(Predictor(experiment, experiment.init())))
