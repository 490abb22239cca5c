"""Features of a released ResNet for CIFAR-10, computed once, for runs that train heads alone.

    python -m tools.frozen_features --weights resnet56.npz --data DIR [--out DIR] [--depth 56]
    python -m tools.frozen_features --join DIR,DIR,... --out DIR

The weights are an npz file with the names of PyTorch (`layout="resnet"`) of a network of He et al.
(2016a) with option-A shortcuts, whose inputs are x / 255, normalised by ImageNet's mean and std.
The data are what of these lies in `--data`:

    cifar-10-batches-bin/  train and test; cifar10_human.npz, human labels of both (data/cifar.py)
    cifar100_test.npz, gtsrb.npz, dtd.npz    x_test uint8 [N, H, W, 3], resized to 32 x 32
    mnist/                                   the IDX files of the test set, resized to 32 x 32
    frost.npz                                the textures of the corruption `frost`

Writes, in `--out`:

    train.npz      x_train [50000, 64] float32, y_train, and labels of CIFAR-10N: aggregate_train,
                   random1_train, ..., worst_train
    test.npz       x_test, y_test, human_test: the votes of CIFAR-10H
    corrupted.npz  x_test, y_test, corruption_test (a number in cifar_c.KINDS), severity_test: the
                   first images of the test set (`--corrupted`, 2,000) under all corruptions of
                   CIFAR-10-C at severities 1, 3 and 5
    cifar100.npz, gtsrb.npz, dtd.npz, mnist.npz  x_test
    head.npz       the last layer: head/logits/kernel [64, 10], head/logits/bias [10]

Beside each x are also logits [N, 10] of the released last layer, and stage1 [N, 16] and stage2
[N, 32], the means over space of the earlier stages' outputs. Parts of at most 10,000 images are
kept in `parts/`, so an interrupted run resumes; their names have a checksum of the weights and the
images, so that parts of others are not taken.

`--join` puts what several such folders have side by side, for an ensemble of their networks: x
[N, 64 M] and logits [N, 10 M], and in head.npz the last layers as those of M members, whose kernels
[64 M, 10] are 0 but for the features of their own network.
"""

import pathlib
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from experiments.data.cifar import NOISY, cifar_binary
from experiments.data.files import idx, load_npz
from experiments.experiment import readers
from experiments.runtime import storage
from uncertainty import build
from uncertainty.layers.residual import Stage
from uncertainty.restore.plan import plan
from uncertainty.rules import path_of

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as the weights expect
PART, BATCH = 10_000, 250  # images
SEVERITIES = (1, 3, 5)
HEAD = "head.npz"
Compute = Callable[[np.ndarray], dict[str, np.ndarray]]

FLAGS = flags.FLAGS
if __name__ == "__main__":
    flags.DEFINE_string("weights", None, "An npz file, see above.")
    flags.DEFINE_string("data", None, "The folder of the data.")
    flags.DEFINE_list("join", [], "Folders that this program wrote, in place of weights and data.")
    flags.DEFINE_string("out", "~/frozen_cifar10", "The folder to write to.")
    flags.DEFINE_integer("depth", 56, "Of the network.")
    flags.DEFINE_integer("corrupted", 2_000, "How many test images to corrupt.", lower_bound=1)
    flags.DEFINE_list("only", [], "Names of sets; by default all.")


def network(weights: pathlib.Path, depth: int) -> tuple[Compute, dict[str, np.ndarray]]:
    """Computes features and logits of uint8 images [B, 32, 32, 3], and the last layer.

    Raises:
      ValueError: the weights do not fit the network.
    """
    net = build.network(
        dict(
            backbone=dict(
                name="resnet.ResNet", depth=depth, shortcuts="zero_padding", padding="symmetric"
            ),
            ensemble=dict(name="single"),
            head=dict(name="dense.Dense", outputs=10),
        )
    )
    shapes = jax.eval_shape(
        lambda x: net.init(jax.random.key(0), x, train=False),
        jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32),
    )
    targets = {"params": shapes["params"], "rest": {"batch_stats": shapes["batch_stats"]}}
    flat = {path_of(k[1:]): v.shape for k, v in jax.tree_util.tree_leaves_with_path(targets)}
    checkpoint = readers.npz(storage.path(str(weights)))
    moves = plan(checkpoint.shapes, flat, "resnet")
    arrays = checkpoint.read({move.source for move in moves.values()})
    filled = jax.tree_util.tree_map_with_path(
        lambda k, v: moves[path_of(k[1:])](arrays[moves[path_of(k[1:])].source], v.shape), targets
    )
    variables = {"params": filled["params"], **filled["rest"]}

    @jax.jit
    def forward(x: jax.Array) -> dict[str, jax.Array]:
        x = (x.astype(jnp.float32) / 255 - jnp.array(MEAN)) / jnp.array(STD)
        latent, captured = net.apply(
            variables,
            x,
            train=False,
            capture_intermediates=lambda module, _: isinstance(module, Stage),
            mutable=["intermediates"],
        )
        stages = captured["intermediates"]["backbone"]
        means = [stages[f"stage{i}"]["__call__"][0].mean((-3, -2))[0] for i in (1, 2, 3)]
        return dict(stage1=means[0], stage2=means[1], x=means[2], logits=latent.mean[0])

    def compute(x: np.ndarray) -> dict[str, np.ndarray]:
        outs = []
        for start in range(0, len(x), BATCH):
            part = x[start : start + BATCH]
            padded = np.pad(part, ((0, BATCH - len(part)), (0, 0), (0, 0), (0, 0)))
            outs.append({k: np.asarray(v)[: len(part)] for k, v in forward(padded).items()})
        return {key: np.concatenate([out[key] for out in outs]) for key in outs[0]}

    last = {k: np.asarray(v) for k, v in variables["params"]["head"]["logits"].items()}
    return compute, {f"head/logits/{name}": array for name, array in last.items()}


def resized(x: np.ndarray) -> np.ndarray:
    """Images [N, H, W, 1 or 3] as [N, 32, 32, 3], bilinear, antialiased as by Pillow."""
    from PIL import Image

    x = np.repeat(x, 3 // x.shape[-1], axis=-1)
    if x.shape[1:3] == (32, 32):
        return x
    images = (Image.fromarray(image).resize((32, 32), Image.Resampling.BILINEAR) for image in x)
    return np.stack([np.asarray(image) for image in images])


def sets(data: pathlib.Path) -> Iterator[tuple[str, Callable[[], Mapping[str, np.ndarray]]]]:
    """(name, a function that reads its images `x` and further arrays) of what lies in a folder."""
    cifar = data / "cifar-10-batches-bin"
    human = data / "cifar10_human.npz"

    def train() -> Mapping[str, np.ndarray]:
        each = {k: cifar_binary(str(cifar), k, str(human)).read("train")["y"] for k in NOISY}
        return {**cifar_binary(str(cifar)).read("train"), **each}

    yield "test", lambda: cifar_binary(str(cifar), human=str(human)).read("test")
    yield "train", train
    for name in ("cifar100", "gtsrb", "dtd"):
        file = data / ("cifar100_test.npz" if name == "cifar100" else f"{name}.npz")
        if file.is_file():
            yield (
                name,
                lambda file=file: dict(x=resized(load_npz(storage.path(str(file)))["x_test"])),
            )
    if (data / "mnist").is_dir():
        yield "mnist", lambda: dict(x=resized(idx(str(data / "mnist")).read("test")["x"]))


def save(path: pathlib.Path, arrays: Mapping[str, np.ndarray], split: str = "") -> None:
    """Writes an npz file under its name once it is whole; arrays' names end in the split."""
    arrays = {f"{key}_{split}" if split else key: array for key, array in arrays.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial.npz")
    np.savez(partial, **arrays)
    partial.rename(path)


def checksum(*parts: pathlib.Path | np.ndarray | str) -> str:
    """Eight hexadecimal digits of the contents of files, arrays and texts; a missing file is ''."""
    crc = 0
    for part in parts:
        if isinstance(part, pathlib.Path):
            part = np.fromfile(part, np.uint8) if part.is_file() else ""
        if isinstance(part, np.ndarray):
            crc = zlib.crc32(repr((part.shape, part.dtype)).encode(), crc)
        crc = zlib.crc32(
            part.encode() if isinstance(part, str) else np.ascontiguousarray(part), crc
        )
    return f"{crc:08x}"


def features(
    out: pathlib.Path,
    name: str,
    count: int,
    images: Callable[[], np.ndarray],
    compute: Compute,
    made_of: str,
) -> dict[str, np.ndarray]:
    """The features of images, in parts that are kept.

    Args:
      out: the folder of the sets.
      name: of the set.
      count: of the images.
      images: reads them, if a part is missing.
      compute: images -> features.
      made_of: a checksum of the network and the images, for the names of the parts.
    """
    parts = []
    for start in range(0, count, PART):
        file = out / "parts" / f"{name}-{start}-{made_of}.npz"
        size = min(PART, count - start)
        part = load_npz(storage.path(str(file))) if file.is_file() else None
        if part is None or len(part["x"]) < size:
            part = compute(images()[start : start + size])
            save(file, part)
            print(f"{name}: {start + size:,} of {count:,}", flush=True)
        parts.append({key: array[:size] for key, array in part.items()})
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def corrupted(
    out: pathlib.Path,
    test: Mapping[str, np.ndarray],
    count: int,
    frost: pathlib.Path,
    compute: Compute,
    made_by: str,
) -> dict[str, np.ndarray]:
    """The features of the first test images, corrupted; `made_by` is a checksum of the network."""
    from experiments.data import cifar_c

    x, y = (test[key][:count] for key in ("x", "y"))
    made_of = checksum(made_by, test["x"], frost)
    parts = []
    for number, kind in enumerate(cifar_c.KINDS):
        for severity in SEVERITIES:

            def images(kind=kind, severity=severity) -> np.ndarray:
                units = x.astype(np.float32) / 255
                changed = cifar_c.corrupt(units, kind, severity, textures=str(frost))
                return np.rint(255 * changed).astype(np.uint8)

            part = features(out, f"{kind}_{severity}", len(x), images, compute, made_of)
            which = {
                k: np.full(len(x), v) for k, v in dict(corruption=number, severity=severity).items()
            }
            parts.append({**part, "y": y, **which})
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def join(folders: Sequence[pathlib.Path], out: pathlib.Path) -> None:
    """Writes the sets that all folders have, with features and logits side by side; see above.

    Raises:
      ValueError: fewer than two folders, or examples that are not those of the first.
    """
    if len(folders) < 2:
        raise ValueError(f"--join: {[*map(str, folders)]}; two folders at least")
    names = set.intersection(*({file.name for file in of.glob("*.npz")} for of in folders))
    for name in sorted(names):
        files = [load_npz(storage.path(str(of / name))) for of in folders]
        result = {}
        for key in (key for key in files[0] if not key.startswith("stage")):
            each = [file[key] for file in files]
            if name == HEAD:
                result[key] = blocks(each)
            elif key.startswith(("x_", "logits_")):
                result[key] = np.concatenate(each, axis=1)
            else:
                for folder, other in zip(folders, each, strict=True):
                    if not np.array_equal(other, each[0]):
                        raise ValueError(f"--join: {folder / name} has another {key}")
                result[key] = each[0]
        save(out / name, result)
    print(f"written to {out}")


def blocks(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """M kernels [D, K] as [M, M D, K], each of which sees its own D features; biases as [M, K]."""
    if arrays[0].ndim == 1:
        return np.stack(arrays)
    (D, K), M = arrays[0].shape, len(arrays)
    result = np.zeros((M, M, D, K), arrays[0].dtype)
    for m, kernel in enumerate(arrays):
        result[m, m] = kernel
    return result.reshape(M, M * D, K)


def main(_) -> None:
    if FLAGS.join:
        folders = [pathlib.Path(folder).expanduser() for folder in FLAGS.join]
        return join(folders, pathlib.Path(FLAGS.out).expanduser())
    for name in ("weights", "data"):
        if FLAGS[name].value is None:
            raise ValueError(f"--{name}: missing")
    data, out = (pathlib.Path(p).expanduser() for p in (FLAGS.data, FLAGS.out))
    weights = pathlib.Path(FLAGS.weights).expanduser()
    compute, last = network(weights, FLAGS.depth)
    which = checksum(weights, str(FLAGS.depth))
    save(out / HEAD, last)
    readers_of = dict(sets(data))
    for name, read in readers_of.items():
        if FLAGS.only and name not in FLAGS.only:
            continue
        arrays = read()
        x, made_of = arrays["x"], checksum(which, arrays["x"])
        result = features(out, name, len(x), lambda x=x: x, compute, made_of)
        save(out / f"{name}.npz", {**arrays, **result}, "train" if name == "train" else "test")
        if "y" in arrays:
            accuracy = np.mean(result["logits"].argmax(1) == arrays["y"])
            print(f"{name}: accuracy {100 * accuracy:.2f} %", flush=True)
    if not FLAGS.only or "corrupted" in FLAGS.only:
        test = readers_of["test"]()
        result = corrupted(out, test, FLAGS.corrupted, data / "frost.npz", compute, which)
        save(out / "corrupted.npz", result, "test")
    print(f"written to {out}")


if __name__ == "__main__":
    try:
        app.run(main)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
