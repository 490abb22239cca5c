"""Features of every ensemble: what the head makes of them is the latent."""

import jax
import numpy as np
import pytest

from tests.backbones.conftest import draw_model
from uncertainty import build

M, B, K = 2, 3, 5
X = np.random.default_rng(0).normal(size=(B, 8, 8, 1)).astype("float32")
EXPERTS = dict(name="experts.MoE", num_experts=4, split_rngs=True, router=dict(name="routers.TopK"))
ENSEMBLES = [  # with the features that members have of their own
    (dict(name="single"), 1),
    (dict(name="multi_head", size=M), 1),
    (dict(name="mimo", size=M), 1),
    (dict(name="mc_dropout", size=M, rate=0.3), M),
    (dict(name="masksembles", size=M, scale=1.5), M),
    (dict(name="batch_ensemble", size=M, where="backbone"), M),
    (dict(name="rank1", size=M, num_examples=9, where="backbone"), M),
    (dict(name="packed", size=M), M),
    (dict(name="e3", size=M), M),
    (dict(name="e3", size=M, tile=False), 1),
]


@pytest.mark.slow
@pytest.mark.parametrize(("ensemble", "members"), ENSEMBLES)
def test_the_head_makes_the_latent_of_them(ensemble, members):
    experts = dict(experts=EXPERTS, expert_blocks=(0,)) if ensemble["name"] == "e3" else {}
    backbone = dict(name="vit.ViT", variant="tiny", width=8, mlp_dim=8, depth=1, **experts)
    model = build.model(
        dict(
            backbone=backbone,
            ensemble=ensemble,
            head=dict(name="dense.Dense", outputs=K),
            likelihood="softmax",
        )
    )
    params, collections = draw_model(model, X)
    key = jax.random.key(1, impl="unsafe_rbg")  # sooner compiled
    both = jax.jit(lambda *a: (model.features(*a), model.forward(*a, train=False)[0]))
    phi, latent = both(params, collections, X, key)  # of whose two passes XLA makes one
    phi = np.asarray(phi)
    assert phi.shape == (members, B, phi.shape[2])
    logits = params["head"]["logits"]
    made = phi @ np.asarray(logits["kernel"]) + np.asarray(logits["bias"]).reshape(-1, 1, K)
    np.testing.assert_allclose(made, latent.mean, rtol=1e-4, atol=1e-5)
    if members > 1:
        assert np.abs(phi[0] - phi[1]).max() > 1e-3
