"""Training throughput of an MLP ensemble on CPU, against PyTorch.

    python -m benchmarks.mlp_ensemble --opponents /path/to/python/with/torch [--save]

784-200-200-10, 10 members, batch 128, Adam 1e-3, softmax cross-entropy; otherwise as in
`benchmarks.lenet_ensemble`. The rows "8 steps a call" run the same update in a scan over batches.

The floor: 0.2 million multiply-adds per example forward, with the gradient three times that (twice
for the first layer): 0.11 GFLOP per member and step, 0.55 ms on one core at 210 GFLOP/s. Adam
reads and writes 200,000 parameters in four arrays: 6 MB per member, 0.3 ms at 20 GB/s.
"""

from benchmarks import against_torch
from uncertainty.backbones.mlp import MLP

EXECUTORS = ("auto", "scan", "8 steps a call: vmap", "8 steps a call: scan")


def main() -> None:
    arguments = against_torch.parse(__doc__, EXECUTORS, ("loop", "vmap"))
    against_torch.compare(
        "MLP 784-200-200-10", MLP(widths=(200, 200)), dict(name="mlp"), (784,), 1.1, arguments
    )


if __name__ == "__main__":
    main()
