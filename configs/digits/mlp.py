"""An MLP, or a deep ensemble of MLPs, on scikit-learn's handwritten digits.

Data: 8 x 8 images of the digits 0 to 7; 8 and 9 are held out as out-of-distribution data.
Hardware and time: 2 CPU cores, seconds for one network, under half a minute for ten.
Command: python -m experiments.train --config configs/digits/mlp.py:size=10 --workdir runs/digits
"""

from ml_collections import ConfigDict

from experiments.experiment.base import base, parse_arg, shrink


def get_config(arg: str | None = None) -> ConfigDict:
    """`size`: networks in the ensemble."""
    arg = parse_arg(arg, size=1)
    config = base()
    seen, held_out = tuple(range(8)), (8, 9)
    config.data.train = dict(name="digits", split="train", classes=seen)
    config.data.validation = dict(split="validation")  # of the same classes of the same set
    config.data.test = dict(split="test")  # of all evaluators
    config.batch_size = 64

    config.backbone = dict(name="mlp.MLP", widths=(128, 128))
    config.head = dict(name="dense.Dense", outputs=len(seen))
    config.inference.size = arg.size

    config.steps = 1_000
    config.optimiser = dict(
        name="adam",
        learning_rate=1e-3,
        schedule=dict(name="cosine", warmup_steps=50),
        weight_decay=((".*kernel", 1e-2),),
    )

    config.evaluation.batch_size = 200
    config.evaluation.every = 200
    config.evaluators = dict(
        test=dict(name="classification"),
        corruption=dict(name="corruption"),
        ood=dict(
            name="ood",
            sets=dict(
                held_out=dict(name="digits", split="train+validation+test", classes=held_out),
                noise=dict(name="noise", shape=(8, 8, 1), split="test"),
            ),
        ),
    )
    return shrink(config) if arg.runlocal else config
