"""Training throughput of a ResNet-20 ensemble on CPU, against PyTorch.

    python -m benchmarks.resnet_ensemble --opponents /path/to/python/with/torch [--save]

Images of 32 x 32 x 3, 4 members, batch 64; otherwise as in `benchmarks.lenet_ensemble`. PyTorch's
norms keep no running averages, so its side does slightly less work.

The floor: 41 million multiply-adds per example forward, with the gradient three times that: 16
GFLOP per member and step, 75 ms on one core at 210 GFLOP/s.
"""

from benchmarks import against_torch
from uncertainty.backbones.resnet import ResNet

METHODS = ("loop", "loop, channels last")


def main() -> None:
    arguments = against_torch.parse(
        __doc__, ("auto",), METHODS, batch=64, size=4, steps=1, rounds=7
    )
    network = dict(name="resnet", depth=20)
    against_torch.compare("ResNet-20", ResNet(depth=20), network, (32, 32, 3), 0.8, arguments)


if __name__ == "__main__":
    main()
