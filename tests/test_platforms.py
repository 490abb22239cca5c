"""Updates of every family lower for GPUs and TPUs, without anything that only a CPU can run."""

import re

import jax
import pytest

from tests.test_composition_trained import ROWS
from tests.test_contract import INFERENCE, batch_of, config_of, images
from uncertainty import build, cpu

# Factorisations call each platform's own library.
LIBRARIES = {
    "cuda": r"cusolver_\w+|cu_\w+|cublas\w*",
    "rocm": r"hipsolver_\w+|hip_\w+",
    "tpu": r"Eigh|LuDecomposition|Qr|Sharding",
}
FEW = [row for row in ROWS if row[0] != "mlp" or row[3] in ("sge", "ssge", "sghmc", "svgd_kernel")]


@pytest.mark.slow
@pytest.mark.parametrize("row", FEW, ids="-".join)
def test_updates_lower_for_other_platforms(row):
    *network, inference = row
    inference = inference if inference in INFERENCE else "particles"
    made = build.inference(config_of(*network, inference), num_examples=64)
    state = jax.eval_shape(made.init, jax.random.key(0), images(1))
    with cpu.compiling_for("several"):
        traced = jax.jit(made.update).trace(state, batch_of(network[2]))
    text = traced.lower(lowering_platforms=tuple(LIBRARIES)).as_text()
    called = set(re.findall(r"custom_call @(\w+)", text))
    assert all(re.fullmatch("|".join(LIBRARIES.values()), name) for name in called), called
