"""LeNet5 on scikit-learn's handwritten digits: members by particles, heads or dropout masks.

Data: as in `mlp.py`, 8 x 8 images of the digits 0 to 7, with 8 and 9 held out.
Hardware and time: 2 CPU cores, under a minute for a network.
Command: python -m experiments.train --config configs/digits/lenet5.py:heads=4 --workdir runs/heads
"""

from ml_collections import ConfigDict

from configs.base import parse_arg, shrink
from configs.digits import mlp


def get_config(arg: str | None = None) -> ConfigDict:
    """`size`: networks; `heads`: on each of them; `masks`: of Monte Carlo dropout in each."""
    arg = parse_arg(arg, size=1, heads=0, masks=0)
    config = mlp.get_config()
    config.backbone = dict(name="lenet.LeNet5", padding="SAME")
    if arg.heads:
        config.ensemble = dict(name="multi_head", size=arg.heads)
    if arg.masks:
        config.ensemble = dict(name="mc_dropout", size=arg.masks, rate=0.1)
    config.inference.size = arg.size
    return shrink(config) if arg.runlocal else config
