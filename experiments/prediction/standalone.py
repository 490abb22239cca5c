"""Predictions of an exported model: needs only jax, flatbuffers and numpy.

    python predict.py x.npy predictions.npz     # x [N, ...], as metadata.json describes it

or from Python

    import predict
    outputs = predict.load()(x)                 # a dict of arrays, see metadata.json
"""

import json
import pathlib
import sys

import jax
import numpy as np

HERE = pathlib.Path(__file__).parent


def load(folder=HERE):
    """The function x [N, ...] -> a dict of arrays, in batches of metadata.json's `batch_size`."""
    folder = pathlib.Path(folder)
    about = json.loads((folder / "metadata.json").read_text())
    program = jax.export.deserialize(bytearray((folder / "program.bin").read_bytes()))
    with np.load(folder / "arrays.npz") as file:
        arrays = jax.device_put([file[str(i)] for i in range(len(file.files))])
    call = jax.jit(program.call)
    shape, dtype, size = about["input"]["shape"], about["input"]["dtype"], about["batch_size"]
    axes = {name: value["axes"].index("examples") for name, value in about["outputs"].items()}

    def predict(x):
        x = np.asarray(x)
        if list(x.shape[1:]) != shape or not len(x):
            raise ValueError(f"x: shape {list(x.shape)}; [N, {', '.join(map(str, shape))}]")
        if x.dtype != dtype and not (dtype == "float32" and np.issubdtype(x.dtype, np.floating)):
            raise ValueError(f"x: {x.dtype}; {dtype}, as the data set stores it")
        parts = []
        for start in range(0, len(x), size):
            part = x[start : start + size].astype(dtype)
            rows = np.minimum(np.arange(size), len(part) - 1)  # the last example is padding
            out = jax.device_get(call(arrays, part[rows], np.int32(len(part))))
            parts.append({k: np.take(v, range(len(part)), axes[k]) for k, v in out.items()})
        return {name: np.concatenate([p[name] for p in parts], axes[name]) for name in axes}

    return predict


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    np.savez(sys.argv[2], **load()(np.load(sys.argv[1])))
