"""Evaluators of heads on cached features: votes, halves, corrupted sets, fitted OOD scores."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.stats
from scipy import special

from configs import openood
from experiments.data import cifar_c
from experiments.evaluators import build, halves
from experiments.evaluators.human import against, shares
from experiments.experiment import config as config_lib
from experiments.experiment.base import base
from experiments.experiment.build import setup
from experiments.prediction.predictor import Predictor
from tools import frozen_features
from uncertainty import metrics
from uncertainty.build import ConfigError
from uncertainty.ood import LastLayer, Outputs
from uncertainty.ood.layers_mahalanobis import layers_mahalanobis
from uncertainty.ood.vim import vim

D, K, N = 6, 3, 240
RNG = np.random.default_rng(0)
CENTRES = 2 * RNG.normal(size=(K, D))


def features(n):
    y = np.arange(n) % K
    return (CENTRES[y] + RNG.normal(size=(n, D))).astype(np.float32), y


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A dense head with known weights, and files of features."""
    folder = tmp_path_factory.mktemp("frozen")
    files = {}

    def save(name, x, y=None, **more):
        labels = {} if y is None else {"y": y}
        np.savez(folder / f"{name}.npz", x=x, stage1=x[:, :2] ** 2, **labels, **more)
        entries = ("stage1", *more)
        path = str(folder / f"{name}.npz")
        files[name] = dict(name="npz", path=path, num_classes=K, entries=entries)

    save("train", *features(N))
    x, y = features(N)
    y = np.where(np.arange(N) % 11, y, (y + 1) % K)  # some labels that are wrong
    save("test", x, y, votes=RNG.integers(0, 9, (N, K)) + 10 * np.eye(K, dtype=int)[y])
    which = dict(corruption=np.arange(N) % 2 * 4, severity=1 + np.arange(N) // 2 % 2 * 4)
    save("corrupted", x + RNG.normal(size=x.shape), y, **which)
    save("outside", 3 * RNG.normal(size=(50, D)))

    config = base()
    config.data.train = files["train"]
    config.backbone = dict(name="mlp.MLP", widths=())
    config.head = dict(name="dense.Dense", outputs=K)
    config.evaluation.batch_size = 60
    experiment = setup(config_lib.plain(config), evaluated=False)
    state = experiment.init()
    last = LastLayer((3 * CENTRES.T).astype(np.float32), -1.5 * (CENTRES**2).sum(1))
    params = {
        "kernel": jnp.array(last.kernel)[None],
        "bias": jnp.array(last.bias, jnp.float32)[None],
    }
    state = state.replace(params={**state.params, "head": {"logits": params}})
    return Predictor(experiment, state), files, last


def run(made, name, **spec):
    predict = made[0]
    evaluator = build(name, dict(name=name, **spec))
    values = {k: v for k, v in evaluator.run(predict) if np.ndim(v) == 0}
    assert set(values) <= evaluator.yields
    return values


def arrays(made, name):
    with np.load(made[1][name]["path"]) as file:
        return dict(file)


def log_p(made, name):
    last = made[2]
    return special.log_softmax(arrays(made, name)["x"] @ last.kernel + last.bias, axis=1)


def test_votes_are_compared_by_loops(made):
    values = run(made, "human", data=made[1]["test"], entry="votes")
    votes, logs = arrays(made, "test")["votes"], log_p(made, "test")
    q = [v / v.sum() for v in votes]
    nll = np.mean(
        [-sum(a * b for a, b in zip(r, s, strict=True)) for r, s in zip(q, logs, strict=True)]
    )
    entropy = np.mean([-sum(a * np.log(a) for a in r if a > 0) for r in q])
    assert values["human/nll"] == pytest.approx(nll, rel=1e-5)
    assert values["human/kl"] == pytest.approx(nll - entropy, rel=1e-5)
    assert values["human/entropy"] == pytest.approx(entropy, rel=1e-6)
    of_p = [scipy.stats.entropy(np.exp(s)) for s in logs]
    of_q = [scipy.stats.entropy(r) for r in q]
    assert values["human/spearman"] == pytest.approx(scipy.stats.spearmanr(of_p, of_q)[0], abs=1e-3)
    doubt = np.array([max(r) <= 0.9 for r in q])
    pairs = [(a > b) + (a == b) / 2 for a in np.array(of_p)[doubt] for b in np.array(of_p)[~doubt]]
    assert values["human/auroc"] == pytest.approx(np.mean(pairs), abs=1e-3)


def test_votes_that_do_not_fit_are_named(made):
    with pytest.raises(ValueError, match="entry: the data have no entry 'human'"):
        run(made, "human", data=made[1]["test"])
    with pytest.raises(ValueError, match=r"entry: 'a' is \(2, 4\); votes for 3 classes"):
        shares(np.ones((2, 4)), 3, "a")
    with pytest.raises(ValueError, match="negative votes, or examples without any"):
        shares(np.array([[0, 0, 0]]), 3, "a")
    same = against(np.log(np.full((2, 2), 0.5)), np.eye(2))
    assert same["human/nll"] == same["human/kl"] == pytest.approx(np.log(2))


def test_each_half_is_calibrated_by_the_other(made):
    spec = dict(data=made[1]["test"], sets=("lac", "aps"), human="votes", seed=3)
    values = run(made, "halves", **spec)
    logs, y = log_p(made, "test"), arrays(made, "test")["y"]
    order = np.argsort(halves.philox(3, halves.SPLIT, stage=1).random_raw(N), kind="stable")
    after, temperatures, inside = np.empty_like(logs), [], np.empty((N, K), bool)
    for held, other in ((order[:120], order[120:]), (order[120:], order[:120])):

        def nll(log_t, held=held):
            scaled = special.log_softmax(logs[held] / np.exp(log_t), axis=1)
            return -scaled[np.arange(120), y[held]].mean()

        T = np.exp(scipy.optimize.minimize_scalar(nll, bounds=(-3, 4), method="bounded").x)
        scaled = special.log_softmax(logs / T, axis=1)
        after[other] = scaled[other]
        temperatures.append(T)
        scores = np.sort(1 - np.exp(scaled[held, y[held]]))
        inside[other] = 1 - np.exp(scaled[other]) <= scores[int(np.ceil(121 * 0.9)) - 1]
    hit = inside[np.arange(N), y]
    assert values["halves/temperature"] == pytest.approx(np.mean(temperatures), rel=1e-2)
    assert values["halves/nll"] == pytest.approx(-after[np.arange(N), y].mean(), rel=1e-3)
    assert values["halves/lac/coverage"] == pytest.approx(hit.mean(), abs=2.1 / N)
    assert values["halves/lac/size"] == pytest.approx(inside.sum(1).mean(), abs=4.1 / N)
    lowest = min(hit[y == k].mean() for k in range(K))
    assert values["halves/lac/coverage_class"] == pytest.approx(lowest, abs=2.1 / 80)
    assert 0.84 < values["halves/aps/coverage"] < 0.96
    votes = arrays(made, "test")["votes"]
    q = votes / votes.sum(1, keepdims=True)
    assert values["halves/human_nll"] == pytest.approx(-(q * after).sum(1).mean(), rel=1e-3)
    with pytest.raises(ConfigError, match="did you mean 'temperature'"):
        build("h", dict(name="halves", data=dict(split="test"), method="temperatur"))


def test_corrupted_sets_are_averaged_by_kind_and_severity(made):
    values = run(made, "corrupted", data=made[1]["corrupted"])
    logs, stored = log_p(made, "corrupted"), arrays(made, "corrupted")
    each = []
    for number in (0, 4):
        for severity in (1, 5):
            rows = (stored["corruption"] == number) & (stored["severity"] == severity)
            nll = -logs[rows, stored["y"][rows]].mean()
            key = f"corruption/{cifar_c.KINDS[number]}/{severity}/nll"
            assert values[key] == pytest.approx(nll, rel=1e-4)
            each.append(nll)
    assert values["corruption/nll"] == pytest.approx(np.mean(each), rel=1e-4)
    with pytest.raises(ValueError, match="data: no entry 'corruption'"):
        run(made, "corrupted", data=made[1]["test"])

    fitted = run(made, "corrupted", data=made[1]["corrupted"], fit=made[1]["test"])
    clean, y = log_p(made, "test"), arrays(made, "test")["y"]

    def at(t, logs, y):
        return -special.log_softmax(logs / t, axis=1)[np.arange(len(y)), y]

    T = scipy.optimize.minimize_scalar(
        lambda t: at(t, clean, y).mean(), bounds=(0.1, 30), method="bounded"
    ).x
    nll = at(T, logs, stored["y"]).mean()  # all four parts are of one size
    assert fitted["corruption/fitted/nll"] == pytest.approx(nll, rel=1e-3)
    assert {k: fitted[k] for k in values} == values
    check = build(
        "c", dict(name="corrupted", data=made[1]["corrupted"], fit=made[1]["train"])
    ).check
    with pytest.raises(ValueError, match=r"fit: 100% of the 240 examples .* the training data"):
        check(made[0].runs[0].experiment.source)


def test_joined_networks_predict_as_each_does(tmp_path):
    """Of features side by side, heads of zeros and blocks see their own network's alone."""
    parts = []
    for i in range(3):
        kernel, bias, x = RNG.normal(size=(D, K)), RNG.normal(size=K), RNG.normal(size=(9, D))
        head = {"head/logits/kernel": kernel, "head/logits/bias": bias}
        frozen_features.save(tmp_path / str(i) / "head.npz", head)
        own = dict(x=x, logits=x @ kernel + bias, y=np.arange(9), stage1=x[:, :2])
        frozen_features.save(tmp_path / str(i) / "test.npz", own, "test")
        parts.append(own["logits"])
    frozen_features.save(tmp_path / "0" / "other.npz", own, "test")  # that the others lack
    folders = [tmp_path / str(i) for i in range(3)]
    frozen_features.join(folders, tmp_path / "together")
    assert {p.name for p in (tmp_path / "together").iterdir()} == {"head.npz", "test.npz"}
    head, test = (dict(np.load(tmp_path / "together" / f"{n}.npz")) for n in ("head", "test"))
    logits = np.einsum("bd,mdk->mbk", test["x_test"], head["head/logits/kernel"])
    logits += head["head/logits/bias"][:, None]
    np.testing.assert_allclose(logits, parts)
    np.testing.assert_array_equal(test["logits_test"], np.concatenate(parts, 1))
    assert set(test) == {"x_test", "logits_test", "y_test"}
    with pytest.raises(ValueError, match="two folders at least"):
        frozen_features.join(folders[:1], tmp_path / "together")
    frozen_features.save(folders[1] / "test.npz", own | dict(y=np.arange(9)[::-1]), "test")
    with pytest.raises(ValueError, match=r"1/test.npz has another y_test"):
        frozen_features.join(folders, tmp_path / "together")


def test_parts_of_other_weights_or_images_are_not_taken(tmp_path):
    images, other = RNG.integers(0, 256, (2, 7, 4, 4, 3), dtype=np.uint8)
    computed = []

    def run(weights, x, depth="56"):
        """Features by made-up weights: a factor."""
        (tmp_path / "weights.npz").write_bytes(bytes([weights]))

        def compute(part):
            computed.append(len(part))
            return dict(x=weights * part[:, 0, 0].astype(np.float32))

        network = frozen_features.checksum(tmp_path / "weights.npz", depth)
        made_of = frozen_features.checksum(network, x)
        return frozen_features.features(tmp_path, "test", len(x), lambda: x, compute, made_of)["x"]

    for weights, x, depth in ((2, images, "56"), (3, images, "56"), (3, other, "56")):
        for _ in range(2):  # the second is read
            np.testing.assert_array_equal(
                run(weights, x, depth), weights * x[:, 0, 0].astype(float)
            )
    run(3, other, "20")
    assert computed == [7] * 4
    checksum = frozen_features.checksum
    assert checksum(np.zeros((2, 3))) != checksum(np.zeros((3, 2)))
    assert checksum(tmp_path / "none") == checksum("")


def test_fitted_scores_rank_sets(made):
    files = made[1]
    spec = dict(
        data=files["test"],
        sets=dict(far=files["outside"], near=files["corrupted"]),
        groups=dict(all=("far", "near")),
        fit=files["train"],
        layers=("stage1",),
        scores=(
            "layers_mahalanobis",
            dict(name="vim", dimensions=2),
            dict(name="odin", temperature=9.0),
        ),
    )
    values = run(made, "ood", **spec)

    def outputs(name):
        a = arrays(made, name)
        last = made[2]
        return Outputs(a["x"], a["x"] @ last.kernel + last.bias, a.get("y"), (a["stage1"],), last)

    for score, fit in (("layers_mahalanobis", layers_mahalanobis), ("vim", vim)):
        scorer = fit(outputs("train"), **({"dimensions": 2} if score == "vim" else {}))
        want = metrics.ranking(scorer(outputs("test")), scorer(outputs("outside")))
        for metric, value in want.items():
            assert values[f"ood/far/{metric}_{score}"] == pytest.approx(value, abs=2e-3)
    for key in ("auroc_vim", "fpr95_in_entropy", "auroc_odin"):
        pair = [values[f"ood/{name}/{key}"] for name in ("far", "near")]
        assert values[f"ood/all/{key}"] == pytest.approx(np.mean(pair))
    assert "ood/all/ratio_entropy" not in values

    def confidence(x):
        return jax.nn.log_softmax((x @ made[2].kernel + made[2].bias) / 9.0).max(-1)

    def odin(name):
        x = arrays(made, name)["x"]
        step = 0.0014 * jnp.sign(jax.vmap(jax.grad(confidence))(x))
        return -np.exp(np.asarray(confidence(x + step), np.float64))

    want = metrics.ranking(odin("test"), odin("outside"))["auroc"]
    assert values["ood/far/auroc_odin"] == pytest.approx(want, abs=2e-3)

    sets = dict(data=files["test"], sets=dict(far=files["outside"]))
    values = run(made, "ood", **sets, scores=("energy",))  # has nothing to fit
    energy = (-special.logsumexp(outputs(name).logits, -1) for name in ("test", "outside"))
    want = metrics.ranking(*energy)["auroc"]
    assert values["ood/far/auroc_energy"] == pytest.approx(want, abs=2e-3)
    with pytest.raises(ValueError, match=r"layers: .* has no entry 'stage9'; it has \["):
        run(made, "ood", **sets, scores=("knn",), fit=files["train"], layers=("stage9",))


@pytest.mark.parametrize(
    "fields, message",
    [
        (dict(scores=("vim",)), "fit: missing; the data that the scores are fitted to"),
        (dict(scores=("odin", "odin")), r"scores\[1\]: 'odin' is there twice"),
        (dict(scores=("vym",)), "no file 'vym' in uncertainty/ood; did you mean 'vim'"),
        (dict(scores=(dict(name="knn", n=3),)), r"scores\[0\].n: no such field"),
        (dict(groups=dict(near=("cifar",))), r"groups.near: \['cifar'\]; the sets are \['far'\]"),
    ],
)
def test_wrong_scores_are_named(fields, message):
    spec = dict(name="ood", data=dict(split="test"), sets=dict(far=dict(split="test")))
    with pytest.raises(ConfigError, match=message):
        build("ood", spec | fields)


@pytest.mark.parametrize("dataset", openood.SETS)
def test_the_sets_of_openood_are_in_tfds(dataset):
    test = dict(name="digits", split="test")
    spec = openood.evaluator(dataset, test, size=32, scores=("energy",), fit=test)
    evaluator = build("ood", spec)
    named = {one.tfds for of in openood.SETS[dataset].values() for one in of.values()} - {None}
    assert {read.data["name"] for read in evaluator.data} == named | {"digits"}
    if dataset == "cifar10":
        assert spec["groups"] == dict(far=("mnist", "svhn", "texture", "places365"))  # no TIN
