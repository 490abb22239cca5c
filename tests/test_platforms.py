"""Programs of every family lower for GPUs and TPUs, without anything that only a CPU can run."""

import re

import jax
import jax.numpy as jnp
import pytest

from tests.test_composition import STAGES
from tests.test_composition_trained import ROWS
from tests.test_contract import INFERENCE, B, batch_of, config_of, images
from uncertainty import build, cpu
from uncertainty.inference import executors

# Factorisations call each platform's own library.
LIBRARIES = {
    "cuda": r"cusolver_\w+|cu_\w+|cublas\w*",
    "rocm": r"hipsolver_\w+|hip_\w+",
    "tpu": r"Eigh|LuDecomposition|Qr|ProductOfElementaryHouseholderReflectors|Sharding",
}
FEW = [row for row in ROWS if row[0] != "mlp" or row[3] in ("sge", "ssge", "sghmc", "svgd_kernel")]


def lowers(program, *arguments):
    """Lowers a function of these shapes for all of LIBRARIES; returns those of its results."""
    with cpu.compiling_for("several"):
        traced = jax.jit(program).trace(*arguments)
    text = traced.lower(lowering_platforms=tuple(LIBRARIES)).as_text()
    called = set(re.findall(r"custom_call @(\w+)", text))
    assert all(re.fullmatch("|".join(LIBRARIES.values()), name) for name in called), called
    return traced.out_info


@pytest.mark.slow
@pytest.mark.parametrize("row", FEW, ids="-".join)
def test_updates_and_predictions_lower_for_other_platforms(row):
    *network, inference = row
    inference = inference if inference in INFERENCE else "particles"
    made = build.inference(config_of(*network, inference), num_examples=64)
    state = jax.eval_shape(made.init, jax.random.key(0), images(1))
    lowers(made.update, state, batch_of(network[2]))
    # as evaluated: part of the last batch is padding
    lowers(made.predict, state, images(B), jnp.ones(B, bool))


@pytest.mark.slow
@pytest.mark.parametrize("name", STAGES)
def test_stages_lower_for_other_platforms(name):
    head = "hetsngp" if name == "laplace" else "dense"
    config = config_of("resnet" if name == "batch_statistics" else "lenet", "single", head,
                       "particles", stages=[STAGES[name]])  # fmt: skip
    model, x, batch = build.model(config), images(1), batch_of(head)
    made = build.inference(config, model, num_examples=64)
    sizes = dict(train=64, validation=B)
    ((_, stage),) = build.stages(config, model, executors.mapping("vmap"), sizes)
    state = jax.eval_shape(made.init, jax.random.key(0), x)
    carry = lowers(stage.begin, state, x)
    state, carry, _ = lowers(stage.update, state, carry, batch)
    state = lowers(stage.finish, state, carry, x)
    lowers(made.predict, state, images(B))
