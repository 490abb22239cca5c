"""Training steps of BatchEnsemble and packed ensembles of 4 members, on CPU.

    python -m benchmarks.efficient_ensembles --opponents PY [--padding VALID SAME] [--save]
    python -m benchmarks.efficient_ensembles --backbone resnet --batch 32 [--save]

PY is a Python with torch 2.13 and torch-uncertainty 0.13. Sides, taking turns:

    4 networks      ours: particles, the better of `auto` and `vmap`; theirs: torch.nn in a loop
    BatchEnsemble   ours: `ensembles.batch_ensemble`; theirs: BatchConv2d, BatchLinear and
                    methods.BatchEnsemble(repeat_training_inputs=True)
    packed          ours: `ensembles.packed`, alpha = 2; theirs: PackedConv2d, PackedLinear

LeNet5 on 28 x 28 images, both forms, Adam 1e-3; every member sees the whole batch, and the loss is
the mean over members. For each kind both libraries start from the same parameters and see the same
batches, and the losses of the first steps must agree. Theirs runs with channels first and last, on
one thread and on all cores; the best of these counts. ResNet-8 compares our own methods only,
without checking losses, since members' batch statistics differ from those of separate networks.

The floor, in multiply-adds per example and member, forward; with the gradient it is three times
that, except for the first layer's inputs. LeNet5 takes 0.42 M (VALID) and 3.43 M (SAME).
BatchEnsemble does the same work per member as a network, so its products are those of 4 networks,
10.5 GFLOP per step for SAME and a batch of 128, 90 ms on a core with 115 GFLOP/s. It saves 3/4 of
the optimiser (61,706 parameters instead of 246,824, 0.2 ms of Adam), but scaling the kernels by r
and s costs as much. So 1 is the best possible ratio to 4 networks, and where theirs is bound by the
same products, as with SAME, no ratio of 2 to theirs is possible. Packed members with half of the
features have 1/4 of the inner layers' products, and 1/2 of the first's, which is 28 % of VALID and
3 % of SAME: 0.32 and 0.26 of 4 networks at best; copies for each product are only halved.
"""

import argparse
import itertools
import os
import tempfile
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from benchmarks import against_torch, timing
from benchmarks.timing import block, over, show
from uncertainty import build
from uncertainty.types import Inference

M, BATCHES, COMPARED = 4, 4, 5
RESNET = dict(name="resnet.ResNet", depth=8)
TARGETS = dict(networks=1.0, torch=1.0)  # time / time of 4 networks, and / theirs


def kinds(backbone: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Sections of a config."""
    fast = dict(name="batch_ensemble", size=M, fast_weights=dict(name="batch_ensemble.gaussian"))
    return {
        "networks": dict(ensemble="single", inference=dict(name="particles", size=M)),
        "networks, vmap": dict(
            ensemble="single", inference=dict(name="particles", size=M, executor="vmap")
        ),
        "batch_ensemble": dict(ensemble=fast, inference=dict(name="particles")),
        "packed": dict(
            ensemble=dict(name="packed", size=M, alpha=2.0), inference=dict(name="particles")
        ),
    }


def inference(backbone: Any, sections: Mapping[str, Any]) -> Inference:
    """That of a config with ten classes and Adam."""
    return build.inference(
        dict(
            backbone=backbone,
            head=dict(name="dense.Dense", outputs=10),
            likelihood="softmax",
            optimiser=dict(name="adam", learning_rate=1e-3),
            steps=1_000_000,
            **sections,
        ),
        num_examples=1,
    )


class Ours:
    """The compiled update of a config, and its state."""

    def __init__(self, backbone: Any, sections: Mapping[str, Any], batches: Mapping[str, Any]):
        algorithm = inference(backbone, sections)
        self.batches = [{key: a[i] for key, a in batches.items()} for i in range(BATCHES)]
        self.init = lambda: algorithm.init(jax.random.key(0), batches["x"][0])
        self.state, self.done = self.init(), 0
        lowered = jax.jit(algorithm.update, donate_argnums=0).lower(self.state, self.batches[0])
        programs: list = []
        self.compile_seconds, _ = timing.clock(lambda: programs.append(lowered.compile()))
        self.update = programs[0]

    def steps(self, number: int) -> Any:
        for _ in range(number):
            self.state, metrics = self.update(self.state, self.batches[self.done % BATCHES])
            self.done += 1
        return metrics["loss"]

    def losses(self) -> list[float]:
        self.state, self.done = self.init(), 0
        return [float(np.mean(self.steps(1))) for _ in range(COMPARED)]

    def parameters(self) -> int:
        return sum(a.size for a in jax.tree.leaves(self.state.params))

    def arrays(self, side: int | None) -> dict[str, np.ndarray]:
        """`layer/leaf` as `efficient_ensembles_torch.py` reads it.

        Args:
          side: of the image that is flattened, as [H, W, C] in ours and as [C, H, W] in theirs.
        """
        params = self.init().params
        layers = {**params["backbone"], **params["head"]}
        out = {f"{k}/{leaf}": np.asarray(a) for k, v in layers.items() for leaf, a in v.items()}
        if "logits/fast_input" in out or out["logits/kernel"].ndim == 4:  # one particle
            out = {name: a[0] for name, a in out.items()}
        for name in ("dense0/kernel", "dense0/fast_input"):
            if name in out:
                axis = -2 if name.endswith("kernel") else -1
                a = np.moveaxis(out[name], axis, -1)
                a = np.moveaxis(a.reshape(*a.shape[:-1], side, side, -1), -1, -3)
                out[name] = np.moveaxis(a.reshape(*a.shape[:-3], -1), -1, axis)
        return out


def compare(padding: str | None, arguments: argparse.Namespace) -> dict[str, Any]:
    """Times all sides; `padding` of LeNet5, or None for ResNet-8.

    Raises:
      AssertionError: losses differ between the libraries.
    """
    rng = np.random.default_rng(0)
    B, steps = arguments.batch, arguments.steps
    shape = (28, 28, 1) if padding else (32, 32, 3)
    y = rng.integers(10, size=(BATCHES, B)).astype(np.int32)
    means = rng.normal(size=(10, *shape)).astype(np.float32)
    x = (0.3 * means[y] + rng.normal(size=(BATCHES, B, *shape))).astype(np.float32)
    backbone = dict(name="lenet.LeNet5", padding=padding) if padding else RESNET
    ours = {k: Ours(backbone, sections, dict(x=x, y=y)) for k, sections in kinds(backbone).items()}
    sides = {f"ours: {k}": block(lambda o=o: o.steps(steps), steps) for k, o in ours.items()}
    record = dict(
        job=f"training step, {f'LeNet5 {padding}' if padding else 'ResNet-8'}, {M} members, "
        f"batch {B}",
        parameters={k: o.parameters() for k, o in ours.items()},
        megabytes={k: o.update.memory_analysis().temp_size_in_bytes / 1e6 for k, o in ours.items()},
        gflop={  # XLA counts one iteration of a loop, which `auto` uses for networks
            k: o.update.cost_analysis()["flops"] / 1e9 for k, o in ours.items() if k != "networks"
        },
        compile_seconds={k: o.compile_seconds for k, o in ours.items()},
        differences={},
        versions={},
    )
    losses = {k: o.losses() for k, o in ours.items()}
    np.testing.assert_allclose(losses.pop("networks, vmap"), losses["networks"], rtol=2e-3)
    if padding is None or arguments.opponents is None:
        seconds = timed(sides, arguments.rounds)
    else:
        with tempfile.TemporaryDirectory() as folder:
            file = os.path.join(folder, "arrays.npz")
            side = {"SAME": 7, "VALID": 1}[padding]
            later = {"SAME": 2, "VALID": 0}[padding]
            arrays = {f"{k}/{name}": a for k in losses for name, a in ours[k].arrays(side).items()}
            images = np.ascontiguousarray(np.moveaxis(x, -1, -3))
            np.savez(file, x=images, y=y, paddings=[2, later, later], **arrays)
            with timing.Worker(arguments.opponents, "efficient_ensembles_torch.py", file) as worker:
                for k, last, threads in itertools.product(losses, (False, True), arguments.threads):
                    request = dict(kind=k, last=last, threads=threads)
                    answer = worker.ask(**request, steps=COMPARED, losses=True)
                    theirs = answer.pop("losses")
                    np.testing.assert_allclose(theirs, losses[k], rtol=2e-3, err_msg=k)
                    record["versions"] |= answer
                    apart = float(np.abs(np.divide(theirs, losses[k]) - 1).max())
                    record["differences"][k] = max(apart, record["differences"].get(k, 0.0))

                    def turn(request=request):
                        s = worker.ask(**request, steps=steps, losses=False)
                        return s["wall"] / steps, s["cpu"] / steps

                    label = f"torch: {k}{', channels last' * last}, threads: {threads}"
                    sides[label] = turn
                seconds = timed(sides, arguments.rounds)
    best = best_of(seconds)
    ratios = over({k: v for k, v in best.items() if k.startswith("ours")}, "ours: networks")
    ratios = {f"{k} / 4 networks": v for k, v in ratios.items()}
    for k in losses:
        if f"torch: {k}" in best:
            pair = {"ours": best[f"ours: {k}"], "torch": best[f"torch: {k}"]}
            ratios[f"ours: {k} / torch"] = over(pair, "torch")["ours"]
    targets = {"ours: batch_ensemble / 4 networks": TARGETS["networks"]} | {
        f"ours: {k} / torch": TARGETS["torch"] for k in ("batch_ensemble", "packed")
    }
    targets = {k: v for k, v in targets.items() if k in ratios}
    return record | dict(seconds=seconds, ratios=ratios, targets=targets, steps_a_block=steps)


def timed(sides: Mapping[str, Any], rounds: int) -> dict[str, dict[str, float]]:
    timing.take_turns(sides, 1)  # warm up
    return timing.take_turns(sides, rounds)


def best_of(seconds: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """'ours: kind' or 'torch: kind' -> the best of its variants, for each clock separately."""
    best: dict[str, dict[str, float]] = {}
    for side, values in seconds.items():
        minima = best.setdefault(side.split(",")[0], dict(values))
        minima |= {clock: min(minima[clock], v) for clock, v in values.items()}
    return best


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--opponents", help="python with torch and torch-uncertainty")
    parser.add_argument("--backbone", choices=("lenet", "resnet"), default="lenet")
    forms = ("VALID", "SAME")
    parser.add_argument("--padding", nargs="+", choices=forms, default=forms, help="of LeNet5")
    for name, value in dict(batch=128, steps=4, rounds=7).items():
        parser.add_argument(f"--{name}", type=int, default=value)
    against_torch.add_common(parser)
    arguments = parser.parse_args()
    for padding in arguments.padding if arguments.backbone == "lenet" else (None,):
        record = compare(padding, arguments)
        record |= dict(rounds=arguments.rounds, **timing.where())
        show(record)
        for ratio, values in record["ratios"].items():
            words = ", ".join(f"{clock} {v:.2f}" for clock, v in values.items())
            print(f"{ratio}: {words}; target {record['targets'].get(ratio, 'none')}")
        for key in ("gflop", "megabytes", "compile_seconds", "differences"):
            print(key, {k: float(f"{v:.3g}") for k, v in record[key].items()})
        if arguments.save:
            name = f"lenet5_{padding.lower()}" if padding else "resnet_8"
            name = f"efficient_ensembles_{name}_{arguments.batch}"
            print(f"written: {timing.save(name, record)}")


if __name__ == "__main__":
    main()
