"""Out-of-distribution scores against loops over their definitions and values of pytorch-ood."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uncertainty import ood, specs
from uncertainty.build import ConfigError
from uncertainty.ood import LastLayer, Outputs

RNG = np.random.default_rng(0)
N, D, K = 60, 6, 3
Y = np.arange(N) % K
W, B = RNG.normal(size=(D, K)), RNG.normal(size=K)
PHI = np.abs(RNG.normal(size=(N, D)) + 2 * RNG.random((K, D))[Y])
Q = np.abs(3 * RNG.normal(size=(4, D)))
EARLY, EARLY_Q = RNG.normal(size=(N, 3)) + Y[:, None], 3 * RNG.normal(size=(4, 3))
LAST = LastLayer(W, B)
TRAIN = Outputs(PHI, PHI @ W + B, Y, (EARLY,), LAST)
QUERY = Outputs(Q, Q @ W + B, None, (EARLY_Q,), LAST)
FIELDS = dict(
    mahalanobis=dict(ridge=0.0),
    relative_mahalanobis=dict(ridge=0.0),
    layers_mahalanobis=dict(ridge=0.0),
    knn=dict(k=5),
    energy=dict(temperature=2.0),
    react={},
    dice=dict(sparsity=0.7),
    grad_norm={},
    kl_matching={},
    residual=dict(dimensions=3),
    vim=dict(dimensions=3),
)
# pytorch-ood 0.4.0 with torch 2.14.1 for the arrays above, by its classes of these names. Its
# covariances are sums, not means, and its Mahalanobis distances (not the relative ones) are halved:
# these rows are times 2 N, times N, and times 2 N.
RECORDED = dict(
    mahalanobis=[56.6545, 37.31742, 175.2023, 37.67052],
    relative_mahalanobis=[6.831411, 4.572154, 33.79183, -1.925814],
    layers_mahalanobis=[109.8341, 55.28852, 179.7251, 43.09393],
    knn=[0.3848464, 0.5562385, 0.6846578, 0.3055283],
    energy=[4.152548, -3.920931, -8.299561, 3.262867],
    react=[1.500244, -2.142245, -0.7748124, 1.766343],
    dice=[-3.625239, -5.903007, -12.58137, -3.038684],
    grad_norm=[-24.84282, -10.92393, -14.71372, -19.56381],
    kl_matching=[0.1559766, 0.4879799, 0.5096615, 0.1275471],
    vim=[3.268114, -4.359796, -10.00171, 2.883063],
    odin=[-0.5540593, -0.3931192, -0.4632099, -0.4801584],
)


def fitted(name, train=TRAIN, **fields):
    return specs.make("ood", dict(name=name, **(fields or FIELDS[name])), "scores", train=train)


def softmax(u):
    e = np.exp(u - u.max())
    return e / e.sum()


def energy(u, T=1.0):
    return -T * np.log(sum(np.exp(v / T) for v in u))


def distances(phi, labels, q):
    """Mahalanobis distances [queries, classes] by loops."""
    means = [np.mean([p for p, c in zip(phi, labels, strict=True) if c == k], axis=0)
             for k in range(labels.max() + 1)]  # fmt: skip
    sigma = sum(np.outer(p - means[c], p - means[c]) for p, c in zip(phi, labels, strict=True))
    precision = np.linalg.inv(sigma / len(phi))
    return np.array([[(x - m) @ precision @ (x - m) for m in means] for x in q])


def subspace(q):
    """The size of q outside of the three principal directions about the origin of ViM."""
    origin = np.linalg.lstsq(W.T, -B, rcond=None)[0]
    _, _, rows = np.linalg.svd(PHI - origin)
    return np.sqrt((((q - origin) @ rows[3:].T) ** 2).sum(1))


def expected(name):
    u, train_u = QUERY.logits, TRAIN.logits
    if name == "energy":
        return [energy(row, 2.0) for row in u]
    if name == "mahalanobis":
        return distances(PHI, Y, Q).min(1)
    if name == "relative_mahalanobis":
        return distances(PHI, Y, Q).min(1) - distances(PHI, 0 * Y, Q)[:, 0]
    if name == "layers_mahalanobis":
        return distances(PHI, Y, Q).min(1) + distances(EARLY, Y, EARLY_Q).min(1)
    if name == "knn":
        units = [p / np.linalg.norm(p) for p in PHI]
        return [sorted(np.linalg.norm(x / np.linalg.norm(x) - p) for p in units)[4] for x in Q]
    if name == "react":
        cut = np.sort(PHI.ravel())
        at = 0.9 * (cut.size - 1)
        low = int(at)
        c = cut[low] + (at - low) * (cut[low + 1] - cut[low])
        return [energy(np.array([min(v, c) for v in x]) @ W + B) for x in Q]
    if name == "dice":
        parts = PHI.mean(0)[:, None] * W
        largest = np.argsort(parts.ravel())[int(np.ceil(0.7 * (parts.size - 1) + 1e-9)) :]
        sparse = np.zeros(parts.size)
        sparse[largest] = W.ravel()[largest]
        return [energy(x @ sparse.reshape(W.shape) + B) for x in Q]
    if name == "grad_norm":
        uniform = np.full(K, 1 / K)

        def loss(kernel, x):
            return -jnp.sum(uniform * jax.nn.log_softmax(x @ kernel + B))

        return [-np.abs(jax.grad(loss)(jnp.array(W), x)).sum() for x in Q]
    if name == "kl_matching":
        p = [softmax(row) for row in train_u]
        typical = [
            np.mean([r for r in p if r.argmax() == k], axis=0)
            for k in range(K)
            if any(r.argmax() == k for r in p)
        ]
        return [min(sum(r * np.log(r / t)) for t in typical) for r in map(softmax, u)]
    if name == "residual":
        return subspace(Q)
    assert name == "vim"
    alpha = np.mean([row.max() for row in train_u]) / subspace(PHI).mean()
    return alpha * subspace(Q) + [energy(row) for row in u]


@pytest.mark.parametrize("name", FIELDS)
def test_each_is_its_definition(name):
    rtol = 1e-5 if name in ("grad_norm", "knn") else 1e-8  # of float32
    np.testing.assert_allclose(fitted(name)(QUERY), expected(name), rtol=rtol)


@pytest.mark.parametrize("name", RECORDED)
def test_each_is_that_of_pytorch_ood(name):
    values = odin() if name == "odin" else fitted(name)(QUERY)
    np.testing.assert_allclose(values, RECORDED[name], rtol=2e-5, atol=1e-6)


def odin():
    from uncertainty.ood.odin import odin

    return odin(lambda x: x @ W + B, jnp.array(Q), temperature=10.0, epsilon=0.05)


def test_odin_moves_the_input_towards_confidence():
    score = []
    for x in Q:
        p = softmax((x @ W + B) / 10)
        k = p.argmax()
        gradient = W[:, k] - W @ p  # of log p_k, times 10
        score.append(-softmax(((x + 0.05 * np.sign(gradient)) @ W + B) / 10).max())
    np.testing.assert_allclose(odin(), score, rtol=1e-5)


def test_features_that_never_vary_need_the_ridge():
    phi = np.c_[PHI, np.zeros(N)]
    train, query = TRAIN._replace(features=phi), Outputs(np.c_[Q, np.zeros(4)])
    with pytest.raises(ValueError, match=r"ridge: 0.0; the covariance of the features is singular"):
        fitted("mahalanobis", train)
    near = fitted("mahalanobis", train, ridge=1e-9)(query)
    np.testing.assert_allclose(near, expected("mahalanobis"), rtol=1e-6)
    query.features[:, -1] = 1.0  # a feature that training never saw counts, and finitely
    assert (fitted("mahalanobis", train, ridge=1e-6)(query) > 1e4).all()


def test_scores_do_not_depend_on_the_batch():
    for name in FIELDS:
        scorer = fitted(name)
        one = [
            scorer(Outputs(Q[i : i + 1], QUERY.logits[i : i + 1], None, (EARLY_Q[i : i + 1],)))
            for i in range(len(Q))
        ]
        np.testing.assert_allclose(np.concatenate(one), scorer(QUERY), rtol=1e-6)


BAD = {  # name -> what is wrong, the message
    "mahalanobis": (dict(labels=None), "labels: this score is fitted with labels"),
    "relative_mahalanobis": (dict(labels=Y * 2), "labels: class 1 has no example"),
    "layers_mahalanobis": (dict(layers=()), "layers: this score needs features of earlier"),
    "knn": (dict(features=PHI[:3]), "k: 5; allowed 1 to 3"),
    "react": (dict(last=None), "last: this score needs a dense last layer"),
    "dice": (dict(last=LastLayer(W.T, B)), r"last: kernel \(3, 6\) and bias \(3,\) for 6"),
    "grad_norm": (dict(last=None), "last: this score needs"),
    "kl_matching": (dict(logits=None), "logits: this score needs them"),
    "residual": (dict(features=PHI * np.nan), "features: not finite at example 0"),
    "vim": (dict(features=PHI[:, :2], last=LastLayer(W[:2], B)), "dimensions: 3; allowed 1 to 1"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_does_not_fit_is_named(name):
    fields, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        fitted(name, TRAIN._replace(**fields))


@pytest.mark.parametrize(
    "name, fields, message",
    [
        ("energy", dict(temperature=0.0), "temperature: 0.0; allowed above 0"),
        ("grad_norm", dict(temperature=-1.0), "temperature: -1.0; allowed above 0"),
        ("react", dict(quantile=1.0), "quantile: 1.0; allowed above 0 and below 1"),
        ("dice", dict(sparsity=0.0), "sparsity: 0.0; allowed above 0 and below 1"),
        ("mahalanobis", dict(ridge=-1.0), "ridge: -1.0; allowed from 0"),
        ("mahalanobi", dict(ridge=1.0), "did you mean 'mahalanobis'"),
    ],
)
def test_wrong_fields_are_named(name, fields, message):
    with pytest.raises((ValueError, ConfigError), match=message):
        fitted(name, **fields)


def test_every_file_is_tested():
    files = specs._files(ood, False)
    assert {name for name in files if name[0] != "_"} == {*FIELDS, "odin"}
