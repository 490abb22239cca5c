"""Writes a trained predictor as a folder that runs without this package.

    python -m experiments.export --workdir runs/ensemble --output runs/ensemble/exported
    python runs/ensemble/exported/predict.py images.npy predictions.npz

The folder has the program (StableHLO, by `jax.export`, with JAX's guarantees of compatibility), its
arrays, a description of its inputs and outputs, and `predict.py`, a small module that loads and
calls it and needs only jax, flatbuffers and numpy. Examples go in as the data set stores them;
bytes of images, for example, are scaled and normalised by the program.
"""

import importlib.util
import json
import logging
import pathlib
import shlex
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments import evaluate
from experiments.data.images import BYTES
from experiments.data.source import Source
from experiments.data.splits import UNBOUNDED
from experiments.experiment.build import Experiment
from experiments.prediction import archive, standalone
from experiments.runtime import execution, storage
from experiments.runtime.progress import setup_logging
from experiments.runtime.workdir import jsonable
from uncertainty import cpu, predictive
from uncertainty.build import ConfigError, nearest
from uncertainty.inference import samples
from uncertainty.types import State

logger = logging.getLogger(__name__)

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
PROGRAM, ARRAYS, METADATA, LOADER = "program.bin", "arrays.npz", "metadata.json", "predict.py"

OUTPUTS = {
    "classification": {
        "log_p": (("members", "examples", "classes"), "log p_m(y = k | x) of each member, in nats"),
        "p": (("examples", "classes"), "p(y = k | x): the mean of the members' probabilities"),
    },
    "regression": {
        "mean": (("members", "examples", "outputs"), "mean of y of each member, as y is stored"),
        "variance": (("members", "examples", "outputs"), "variance of y of each member"),
        "mixture_mean": (("examples", "outputs"), "mean of y of the mixture of all members"),
        "mixture_variance": (("examples", "outputs"), "its variance"),
    },
}


def program_of(experiment: Experiment) -> Callable[[Sequence[Any], jax.Array], dict[str, Any]]:
    """(arrays, x [B, ...], count) -> the outputs in OUTPUTS of the task.

    `arrays` are the leaves of `arrays_of(state)`, x is as stored, and examples from `count` on are
    padding.
    """
    source, inference = experiment.source, experiment.inference
    likelihood = experiment.model.likelihood
    of_state = jax.eval_shape(arrays_of, experiment.final_shapes)
    structure = jax.tree.structure(of_state)

    def predict(arrays: Sequence[Any], x: jax.Array, count: jax.Array) -> dict[str, Any]:
        params, collections, key = jax.tree.unflatten(structure, arrays)
        state = State(
            jnp.zeros((), jnp.int32), jax.random.wrap_key_data(key), params, collections, ()
        )
        mask = jnp.arange(len(x)) < count if experiment.model.batch_dependent else None
        latent = inference.predict(state, normalised(source, x), mask)
        if likelihood.log_probs is not None:
            log_p = likelihood.log_probs(latent, jax.random.key(0))
            return dict(log_p=log_p, p=jnp.exp(predictive.mixture(log_p)))
        mean, variance = likelihood.moments(latent)
        if source.y_std is not None:
            mean = mean * source.y_std + source.y_mean
            variance = variance * source.y_std**2
        centre = mean.mean(0)
        return dict(
            mean=mean,
            variance=variance,
            mixture_mean=centre,
            mixture_variance=variance.mean(0) + ((mean - centre) ** 2).mean(0),
        )

    return predict


def arrays_of(state: State) -> tuple[Any, Any, jax.Array]:
    """Parameters, collections and the data of the keys that predict, [P S, ...]."""
    params, collections, key = samples.predicting(state)
    return params, collections, jax.random.key_data(key)


def normalised(source: Source, x: jax.Array) -> jax.Array:
    """What `Source.gather` makes of stored examples."""
    limits = BYTES if source.range is None and x.dtype == jnp.uint8 else source.range
    x = x.astype(jnp.float32)
    if limits not in (None, UNBOUNDED, (0.0, 1.0)):
        low, high = limits
        x = (x - low) / (high - low)
    if source.measured:
        x = jnp.clip(x, 0, 1)
    if source.mean is not None:
        x = x - source.mean
    return x if source.std is None else x / source.std


def export(
    experiment: Experiment,
    state: State,
    output: str | storage.Path,
    platforms: Sequence[str] = ("cpu",),
    batch_size: int = 0,
    noted: Mapping[str, Any] | None = None,
) -> None:
    """Writes the folder; it appears when it is complete (in a bucket, the program comes last).

    Args:
      experiment, state: of a run.
      output: the folder, which may not exist.
      platforms: that the program is lowered for. Only one for CPU alone has the kernels for CPU.
      batch_size: of the program; 0 for that of the config's evaluation.
      noted: further metadata.

    Raises:
      ConfigError: the folder exists, no or an unknown platform, or flatbuffers is missing.
    """
    if importlib.util.find_spec("flatbuffers") is None:
        raise ConfigError("export: needs the package flatbuffers; pip install flatbuffers")
    output = storage.path(output)
    if output.exists():
        raise ConfigError(f"output: {output} exists; give another folder, or remove it")
    platforms = list(dict.fromkeys(platforms))
    if not platforms:
        raise ConfigError(f"platforms: none; of {', '.join(PLATFORMS)}")
    for platform in platforms:
        if platform not in PLATFORMS:
            raise ConfigError(f"platforms: {platform!r}; {nearest(platform, PLATFORMS)}")
    if batch_size < 0:
        raise ConfigError(f"batch_size: {batch_size}; at least 1, or 0 for that of the evaluation")
    storage.require_writable(output.parent)
    size = batch_size or experiment.config["evaluation"]["batch_size"]
    source = experiment.source
    dtype = np.dtype(np.uint8 if source.x.dtype == np.uint8 else np.float32)
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(execution.host(arrays_of(state)))]
    shapes = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in leaves]
    x = jax.ShapeDtypeStruct((size, *source.shape), dtype)
    program = jax.jit(program_of(experiment))
    with cpu.compiling_for(platforms[0] if len(platforms) == 1 else "several"):
        exported = jax.export.export(program, platforms=platforms)(shapes, x, jnp.int32(0))
    task = "classification" if experiment.model.likelihood.log_probs is not None else "regression"
    described = {
        name: dict(axes=axes, meaning=meaning) for name, (axes, meaning) in OUTPUTS[task].items()
    }
    about = dict(
        input=dict(shape=source.shape, dtype=dtype.name, range=source.range),
        outputs=described,
        batch_size=size,
        platforms=list(platforms),
        class_names=source.class_names,
        data=source.name,
        combined=archive.ENSEMBLE[task],
        jax=jax.__version__,
        **(noted or {}),
    )
    beside = str(output.parent) if isinstance(output, pathlib.Path) else None
    with tempfile.TemporaryDirectory(dir=beside, prefix=f".{output.name}.") as made:
        folder = pathlib.Path(made) / output.name
        folder.mkdir()
        (folder / PROGRAM).write_bytes(exported.serialize())
        np.savez(folder / ARRAYS, **{str(i): leaf for i, leaf in enumerate(leaves)})
        (folder / METADATA).write_text(json.dumps(jsonable(about), indent=1))
        shutil.copy(standalone.__file__, folder / LOADER)
        if isinstance(output, pathlib.Path):
            shutil.move(folder, output)
        else:
            storage.upload(folder, output, last=PROGRAM)


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise ConfigError(f"unexpected arguments {argv[1:]}")
    setup_logging()
    workdir = storage.path(WORKDIR.value)
    experiment = evaluate.open_run(workdir)
    state, step = evaluate.restore(experiment, workdir)
    platforms = PLATFORMS_FLAG.value
    export(experiment, state, OUTPUT.value, platforms, BATCH.value, dict(step=step))
    folder = storage.path(OUTPUT.value)
    size = sum(storage.find(folder).values())
    place, first = OUTPUT.value, "try"
    if isinstance(folder, storage.BucketPath):
        place, first = folder.name, "copy it to a disk, and try"
    print(f"{OUTPUT.value}: {size / 2**20:,.1f} MiB, for {', '.join(platforms)}; {first}")
    print(f"  python {shlex.quote(f'{place}/{LOADER}')} x.npy predictions.npz")


if __name__ == "__main__":
    from experiments.runtime import program

    WORKDIR = flags.DEFINE_string("workdir", None, "The directory of a trained run.")
    OUTPUT = flags.DEFINE_string("output", None, "The folder to write, which may not exist.")
    PLATFORMS_FLAG = flags.DEFINE_list(
        "platforms", ["cpu"], f"Of {', '.join(PLATFORMS)}: where the program will run."
    )
    BATCH = flags.DEFINE_integer(
        "batch_size", 0, "Of the program; by default that of the config's evaluation."
    )
    flags.mark_flags_as_required(["workdir", "output"])
    program.run(main)
