"""LeNet5 on scikit-learn's handwritten digits: members as particles, or within one network.

Data: as in `mlp.py`, 8 x 8 images of the digits 0 to 7, with 8 and 9 held out.
Hardware and time: 2 CPU cores, under a minute for a network.
Command: python -m experiments.train --config configs/digits/lenet5.py:heads=4 --workdir runs/heads
"""

from ml_collections import ConfigDict

from configs.digits import mlp
from experiments.experiment.base import parse_arg, shrink

ENSEMBLES = {  # members within one network, and their fields
    "batch_ensemble": dict(fast_weights=dict(name="batch_ensemble.gaussian", stddev=0.5)),
    "mimo": dict(input_repetition=0.5, batch_repetitions=2),
    "masksembles": dict(scale=2.0),
    "packed": dict(alpha=2.0),
    # N: the training images of these digits
    "rank1": dict(num_examples=955, samples=2, anneal_steps=300),
}


def get_config(arg: str | None = None) -> ConfigDict:
    """`size`: networks; `heads`: in each of them; `masks`: of Monte Carlo dropout in each; or
    `ensemble`: one of ENSEMBLES, with `members` in each network."""
    arg = parse_arg(arg, size=1, heads=0, masks=0, ensemble=("single", *ENSEMBLES), members=4)
    config = mlp.get_config()
    config.backbone = dict(name="lenet.LeNet5", padding="SAME")
    if arg.heads:
        config.ensemble = dict(name="multi_head", size=arg.heads)
    if arg.masks:
        config.ensemble = dict(name="mc_dropout", size=arg.masks, rate=0.1)
    if arg.ensemble != "single":
        fields = ENSEMBLES[arg.ensemble]
        config.ensemble = dict(name=arg.ensemble, size=arg.members, **fields)
    config.inference.size = arg.size
    return shrink(config) if arg.runlocal else config
