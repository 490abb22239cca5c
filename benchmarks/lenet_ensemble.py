"""Training throughput of a LeNet5 ensemble on CPU, against PyTorch.

    python -m benchmarks.lenet_ensemble --opponents /path/to/python/with/torch [--save]

Both forms of LeNet5 on 28 x 28 images, 10 members, Adam 1e-3, softmax cross-entropy. Ours is
`uncertainty.inference.particles`, run as in the train loop, with each executor. PyTorch runs a loop
over members (with and without channels-last memory) and torch.func.vmap, each on one thread and on
all cores; ratios are to the best of these. All start from the same parameters, see the same batches
and must have the same losses. Blocks of all sides take turns. CPU time is that of all threads, and
less noisy than wall time on a shared machine.

The floor: 3.43 million multiply-adds per example forward for padding='SAME' and 0.42 for 'VALID',
about three times that with the gradient. At batch 128 that is 2.6 and 0.32 GFLOP per member and
step, so 12.5 and 1.5 ms on one core at 210 GFLOP/s, the speed of XLA's product of two 1024 x 1024
matrices.
"""

from benchmarks import against_torch
from uncertainty.backbones.lenet import LeNet5

EXECUTORS = ("auto", "scan", "vmap")
METHODS = ("loop", "loop, channels last", "vmap")


def main() -> None:
    arguments = against_torch.parse(__doc__, EXECUTORS, METHODS)
    for padding, later in (("VALID", 0), ("SAME", 2)):
        against_torch.compare(
            f"LeNet5 {padding}",
            LeNet5(padding=padding),
            dict(name="lenet", paddings=(2, later, later)),
            (28, 28, 1),
            0.9,
            arguments,
        )


if __name__ == "__main__":
    main()
