"""A small ViT of the transformers library, with random weights, and its inputs and outputs.

    pip install torch transformers
    python -m benchmarks.transformers_vit tests/experiments/transformers_vit.npz

writes the reference file of `tests/experiments/test_pretrained.py`, so that the test needs neither
library. Activation and epsilon are those of the published Flax checkpoints (and of ours); the
library's own defaults are the exact GELU and 1e-12.
"""

import sys

import numpy as np


def main(path: str) -> None:
    """Writes `state/NAME` for each entry of the state dict, `images` [B, C, H, W] and `logits`."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.ViTConfig(
        image_size=16,
        patch_size=4,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        num_labels=5,
        hidden_act="gelu_pytorch_tanh",
        layer_norm_eps=1e-6,
    )
    model = transformers.ViTForImageClassification(config).eval()
    with torch.no_grad():
        # All of them, since biases and norms start at 0 and 1.
        for name, parameter in model.named_parameters():
            noise = torch.randn_like(parameter)
            parameter.copy_(1 + 0.2 * noise if "norm" in name and "weight" in name else 0.2 * noise)
        images = torch.randn(3, 3, 16, 16)
        logits = model(images).logits
    state = {f"state/{name}": array.numpy() for name, array in model.state_dict().items()}
    versions = f"transformers {transformers.__version__}, torch {torch.__version__}"
    np.savez_compressed(
        path, images=images.numpy(), logits=logits.numpy(), versions=np.array(versions), **state
    )


if __name__ == "__main__":
    main(sys.argv[1])
