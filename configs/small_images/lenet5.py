"""LeNet5 on Fashion-MNIST or MNIST: uncertainty-baselines' small-image table.

Published (google/uncertainty-baselines, baselines/mnist/README.md), NLL / accuracy / ECE:
  Fashion-MNIST  deterministic .321 / 91.0 % / -    ensemble of 10 .200 / 93.2 % / .010
  MNIST          deterministic .037 / 99.1 % / -    ensemble of 10 .016 / 99.4 % / .005
Settings (same source): the first 50,000 training images, Adam 1e-3 (TensorFlow's epsilon), batches
of 256, 5,000 steps (25 epochs), no decay, no augmentation. `padding=SAME` is the network that the
script builds, with 545,546 parameters; `padding=VALID` has the 61,706 that its README mentions.

Differences from the source: with `particles=shared` the members of an ensemble see the same batches
in the same order and differ only by their initial weights; with `shuffled` each has its own order,
as in the source, and with `bootstrap` its own sample too (table `particle_examples`).

Command: python -m experiments.train --config configs/small_images/lenet5.py:size=10 --workdir DIR
Fashion-MNIST without a network: python -m tools.prepare_fashion_mnist --help
"""

from ml_collections import ConfigDict

from experiments.experiment.base import base, parse_arg, shrink

SHAPE, CLASSES = (28, 28, 1), 10


def get_config(arg: str | None = None) -> ConfigDict:
    """`dataset`: fashion_mnist or mnist; `size`: networks; `padding`: SAME or VALID; `steps`.

    `particles`: whether they share batches, or have their own orders or bootstrap samples;
    `corruption`: whether to evaluate on corrupted test images, the slowest part of a run.
    """
    arg = parse_arg(
        arg,
        dataset=("fashion_mnist", "mnist"),
        size=1,
        padding=("SAME", "VALID"),
        particles=("shared", "shuffled", "bootstrap"),
        steps=5_000,
        corruption=True,
    )
    config = base()
    test = dict(split="test")

    config.data.train = dict(name=arg.dataset, split="train[:50000]")
    if arg.particles != "shared":
        config.data.particles = arg.particles
    config.batch_size = 256

    config.backbone = dict(name="lenet.LeNet5", padding=arg.padding)
    config.head = dict(name="dense.Dense", outputs=CLASSES)
    config.inference.size = arg.size

    config.steps = arg.steps
    config.optimiser = dict(name="adam", learning_rate=1e-3, eps=1e-7)
    config.logging.every = 100

    config.evaluators = dict(
        test=dict(name="classification", data=test),
        ood=dict(name="ood", data=test, sets=_elsewhere(arg.dataset)),
    )
    if arg.corruption:
        config.evaluators.corruption = dict(name="corruption", data=test)
    return shrink(config, SHAPE, CLASSES) if arg.runlocal else config


def _elsewhere(dataset: str) -> dict:
    """OOD data: the tfds test sets of the same shape.

    For sets in folders: `--config.evaluators.ood.sets.mnist.name=idx` (kmnist: npz) with
    `...path=DIR`.
    """
    others = {"mnist", "kmnist", "fashion_mnist"} - {dataset}
    return {name: dict(name=name, split="test") for name in sorted(others)}
