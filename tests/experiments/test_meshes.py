"""Any batch on any mesh, and parameters sharded over the devices that share the batch."""

import itertools

import jax
import numpy as np
import pytest

from experiments import stage
from experiments.experiment.build import setup
from experiments.prediction.predictor import Predictor
from experiments.runtime import execution
from experiments.runtime.termination import Stop
from tests.test_composition_trained import DIGITS, learnable
from tests.test_contract import paths
from uncertainty.build import ConfigError


@pytest.mark.slow
def test_evaluation_and_stages_take_a_batch_that_devices_do_not_divide(tmp_path):
    """Draws belong to places in the batch, so padding may not move them."""
    results = []
    for data in (1, 8):
        config = learnable("mlp", "mc_dropout", "hetsngp", "laplace")
        config["mesh"], config["evaluation"]["batch_size"] = dict(data=data), 50
        experiment = setup(config)
        state = experiment.init()
        for name, one in experiment.stages:
            folder = tmp_path / str(data)
            folder.mkdir()
            state = stage.run_stage(experiment, name, one, state, 0, folder, folder / name, Stop())
        results.append(Predictor(experiment, state)(DIGITS | dict(split="test")))
    one, eight = results
    assert len(one.y) % 50 % 8 and np.array_equal(one.y, eight.y)
    np.testing.assert_allclose(eight.latent_variance, one.latent_variance, rtol=1e-3)
    np.testing.assert_allclose(eight.log_p, one.log_p, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_a_rule_with_one_axis_shards_the_largest_dimension():
    losses = []
    for rules in ((), ((".*", "data"),)):
        config = learnable("mlp", "multi_head", "dense", "particles")
        config["backbone"] = dict(name="mlp.MLP", widths=(20, 24))
        config |= dict(mesh=dict(data=4, particle=2), sharding=rules)
        experiment = setup(config)
        state = experiment.init()
        for _, batch in itertools.islice(experiment.batches(0), 5):
            state, metrics = experiment.update(state, experiment.put(batch))
        losses.append(metrics["loss"])
    np.testing.assert_allclose(*losses, rtol=1e-4)
    shards = {
        name: leaf["kernel"].addressable_shards[0].data.shape
        for name, leaf in state.params["backbone"].items()
    }
    assert shards == {"dense0": (1, 16, 20), "dense1": (1, 20, 6)}  # of 2 x 64 x 20, 2 x 20 x 24
    biases = [a for path, a in paths(state.params["head"]).items() if path.endswith("bias")]
    assert (
        biases
        and all(  # K = 3
            a.addressable_shards[0].data.shape == (1, *a.shape[1:]) for a in biases
        )
    )
    moments = jax.tree.leaves(state.opt_state, is_leaf=lambda a: isinstance(a, dict))
    kernels = [m["backbone"]["dense0"]["kernel"] for m in moments if isinstance(m, dict)]
    assert len(kernels) == 2
    assert all(m.addressable_shards[0].data.shape == (1, 16, 20) for m in kernels)


def test_an_unknown_axis_of_a_rule_is_named():
    config = learnable("mlp", "single", "dense", "particles") | dict(sharding=((".*", "dat"),))
    with pytest.raises(ConfigError, match=r"sharding\[0\]: 'dat' is no mesh axis; .*'data'"):
        setup(config)


@pytest.mark.parametrize("own", [1, 2, 4, 8])
def test_a_process_reads_the_examples_of_its_devices(own):
    """Of 16 devices, `own` in each process, in all meshes; a 'batch' has one example a shard."""
    for mesh in itertools.product((1, 2, 4, 8, 16), repeat=4):
        if np.prod(mesh) != 16:
            continue
        owners = (np.arange(16) // own).reshape(mesh)
        D, _, E, _ = mesh
        examples = np.broadcast_to(np.arange(D * E).reshape(D, 1, E, 1), mesh)
        found = execution.shares_of(owners)
        for process, (index, count) in found.items():
            size = D * E // count
            read = set(range(index * size, (index + 1) * size))
            assert read == set(examples[owners == process])


def test_processes_with_shares_that_overlap_in_part_are_refused():
    owners = (np.arange(24) // 6).reshape(6, 4, 1, 1)  # data 0, and half of the particles of data 1
    assert execution.shares_of(owners) is None
