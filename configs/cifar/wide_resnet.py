"""WideResNet-28-10 on CIFAR-10 or CIFAR-100: deterministic, ensemble, Monte Carlo dropout.

Published (google/uncertainty-baselines, baselines/cifar/README.md), test NLL / accuracy / ECE:
                     CIFAR-10                CIFAR-100
  deterministic      .159 / 96.0 % / .0231   .875 / 79.8 % / .0857
  ensemble of 4      .114 / 96.6 % / .010    .666 / 82.7 % / .021
  dropout, 1 mask    .160 / 95.9 % / .0241   .830 / 79.6 % / .0501
  dropout, 30 masks  .145 / 96.1 % / .019    .785 / 80.7 % / .0487
Settings (same source, deterministic.py, dropout.py and utils.py): 200 epochs in batches of 512 (64
on each of 8 cores), SGD with Nesterov momentum 0.9 and rate 0.1 (with dropout 0.05) for every 128
examples of the batch, one epoch of warm-up, times 0.2 after 60, 120 and 160 epochs; L2 of 2e-4
(with dropout 3e-4) in Keras' convention, twice that in ours, on all parameters; windows of images
padded by 2, mirrored; dropout 0.1 inside residual blocks. Whether its CIFAR-100 rows were made with
these defaults it does not say, only that nothing but the L2 was tuned.
Its "improved" dropout needs repeated examples too, which are not here; its two other parts are
  --config.backbone.residual_dropout=False --config.backbone.filterwise_dropout=True

Differences from the source: batch normalisation sees the whole batch, not 64 examples; the members
of an ensemble see the same batches and differ by initial weights; warm-up begins at 1/97 of the
rate, not at 0; epochs are not cut to whole batches; corruptions are those of
`experiments/data/corruptions.py`, not CIFAR-10-C.

Hardware and time there: 8 TPUv2 cores, 1.2 h for a network. Ours: not measured. An ensemble that
does not fit a device: --config.inference.executor=loop, or a mesh.
Command: python -m experiments.train --config configs/cifar/wide_resnet.py:size=4 --workdir runs/wrn
"""

from ml_collections import ConfigDict

from configs.base import base, parse_arg, shrink

SHAPE = (32, 32, 3)
CLASSES = {"cifar10": 10, "cifar100": 100}
# Of CIFAR-10's training images, for both sets.
NORMALISED = dict(mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616))


def get_config(arg: str | None = None) -> ConfigDict:
    """`dataset`: cifar10 or cifar100; `size`: networks; `masks`: of Monte Carlo dropout, or 0."""
    arg = parse_arg(arg, dataset=("cifar10", "cifar100"), size=1, masks=0)
    config = base()
    data(config, arg.dataset, pad=2)
    config.batch_size = 512
    steps_per_epoch = 50_000 // config.batch_size

    config.backbone = dict(name="wide_resnet.WideResNet", depth=28, width_multiplier=10)
    if arg.masks:
        config.ensemble = dict(name="mc_dropout", size=arg.masks, rate=0.1)
        config.backbone.update(residual_dropout=True, filterwise_dropout=False)
    config.head = dict(
        name="dense.Dense", outputs=CLASSES[arg.dataset], kernel_init=dict(name="he_normal")
    )
    config.inference.size = arg.size

    config.steps = 200 * steps_per_epoch
    config.optimiser = dict(
        name="sgd",
        momentum=0.9,
        nesterov=True,
        learning_rate=(0.05 if arg.masks else 0.1) * config.batch_size / 128,
        schedule=dict(
            name="step",
            warmup_steps=steps_per_epoch,
            boundaries=(60 / 200, 120 / 200, 160 / 200),
            factor=0.2,
        ),
        l2=((".*", 2 * (3e-4 if arg.masks else 2e-4)),),
    )
    config.checkpoint.every = 25 * steps_per_epoch
    if arg.runlocal:
        shrink(config, SHAPE, CLASSES[arg.dataset], depth=10, width_multiplier=1)
    return config


def data(config: ConfigDict, dataset: str, pad: int) -> None:
    """Training images in random windows, mirrored; test images, the other CIFAR and SVHN."""
    test = dict(name=dataset, split="test", **NORMALISED)
    other = "cifar100" if dataset == "cifar10" else "cifar10"
    config.data.train = dict(name=dataset, split="train", **NORMALISED)
    config.data.augment = (dict(name="crop", pad=pad), dict(name="flip"))
    config.logging.every = 100
    config.evaluators = dict(
        test=dict(name="classification", data=test),
        corruption=dict(name="corruption", data=test),
        ood=dict(
            name="ood",
            data=test,
            sets={
                other: dict(name=other, split="test", **NORMALISED),
                "svhn": dict(name="svhn_cropped", split="test", **NORMALISED),
            },
        ),
    )
