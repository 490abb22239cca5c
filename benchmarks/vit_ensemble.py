"""Training throughput of an ensemble of small ViTs on CPU, against PyTorch.

    python -m benchmarks.vit_ensemble --opponents /path/to/python/with/torch [--save]

Images of 32 x 32 x 3 in patches of 4 with a class token, 65 tokens; 4 blocks of width 64, 2 heads,
MLP of 256; 4 members, batch 64; otherwise as in `benchmarks.lenet_ensemble`. PyTorch's attention is
F.scaled_dot_product_attention after one product for query, key and value.

The floor, in multiply-adds per example: 65 x 12 x 64^2 = 3.2 M for the products of a block and
2 x 65^2 x 64 = 0.54 M for its attention, so 15 M forward and three times that with the gradient:
5.8 GFLOP per member and step, 27 ms on one core at 210 GFLOP/s.
"""

from benchmarks import against_torch
from uncertainty.backbones.vit import ViT

SIZE = dict(patch_size=4, depth=4, width=64, num_heads=2, mlp_dim=256)


def main() -> None:
    arguments = against_torch.parse(
        __doc__, ("auto", "scan"), ("loop",), batch=64, size=4, steps=2, rounds=10
    )
    backbone, network = ViT(variant="tiny", **SIZE), dict(name="vit", heads=SIZE["num_heads"])
    against_torch.compare("ViT 4 x 64", backbone, network, (32, 32, 3), 1.0, arguments)


if __name__ == "__main__":
    main()
