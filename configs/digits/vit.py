"""A tiny ViT on scikit-learn's handwritten digits: dense, sparse, or an ensemble.

Data: as in `mlp.py`, 8 x 8 images of the digits 0 to 7, with 8 and 9 held out. Methods are those of
`configs/small_images/vit.py`; 16 patches of 2 x 2, width 32, 2 blocks, experts in the last.
Hardware and time: 2 CPU cores, well under a minute for a network.
Command: python -m experiments.train --config configs/digits/vit.py:method=e3 --workdir runs/e3
"""

from ml_collections import ConfigDict

from configs.digits import mlp
from configs.small_images.vit import METHODS, set_method
from experiments.experiment.base import parse_arg, shrink


def get_config(arg: str | None = None) -> ConfigDict:
    """`method`: one of METHODS; `k`: experts per token and member; `members`: in each network;
    `size`: networks."""
    arg = parse_arg(arg, method=METHODS, k=1, members=2, size=1)
    config = mlp.get_config()
    config.backbone = dict(name="vit.ViT", variant="tiny", patch_size=2, pooling="gap")
    set_method(config, arg, blocks=(1,))
    config.inference.size = arg.size
    config.optimiser.learning_rate = 6e-3
    config.evaluators.corruption.severities = (1, 3, 5)
    config.evaluators.few_shot = dict(
        name="few_shot",
        sets=dict(
            all_digits=dict(
                train=dict(name="digits", split="train"),
                test=dict(name="digits", split="validation+test"),
            ),
        ),
    )
    config.evaluators.flops = dict(name="flops")
    if "experts" in config.backbone:
        config.evaluators.routing = dict(name="routing")
    return shrink(config, depth=2) if arg.runlocal else config
