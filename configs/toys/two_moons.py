"""A deep ensemble on two moons: its decision boundary, and its confidence far from the data.

Data: 1,500 training points of two interleaved half circles with noise 0.1 (scikit-learn); standard
normal points, most of which lie off the moons, as out-of-distribution data. Settings are ours;
nothing is published for them.
Hardware and time: 2 CPU cores, about ten seconds.
Command: python -m experiments.train --config configs/toys/two_moons.py --workdir runs/two_moons
"""

from ml_collections import ConfigDict

from experiments.experiment.base import base, parse_arg, shrink


def get_config(arg: str | None = None) -> ConfigDict:
    """`size`: networks in the ensemble."""
    arg = parse_arg(arg, size=10)
    config = base()
    test = dict(split="test")

    config.data.train = dict(name="two_moons", split="train")
    config.batch_size = 64

    config.backbone = dict(name="mlp.MLP", widths=(32, 32))
    config.head = dict(name="dense.Dense", outputs=2)
    config.inference.size = arg.size

    config.steps = 2_000
    config.optimiser = dict(
        name="adam", learning_rate=1e-2, schedule=dict(name="cosine", warmup_steps=50)
    )
    config.logging.every = 200

    config.evaluators = dict(
        test=dict(name="classification", data=test),
        ood=dict(
            name="ood",
            data=test,
            sets=dict(normal=dict(name="noise", shape=(2,), distribution="normal", split="test")),
        ),
        map=dict(name="uncertainty_map", data=dict(split="train")),
    )
    return shrink(config) if arg.runlocal else config
