"""ResNet-20, 32 or 56 on CIFAR-10 (He et al. 2016a, section 4.2).

Published test error on CIFAR-10 (table 6 there, as quoted in github.com/akamaster/
pytorch_resnet_cifar10, whose own results follow): ResNet-20 8.75 % and 8.27 %, ResNet-32 7.51 % and
7.37 %, ResNet-56 6.97 % and 6.61 %.
Settings of the paper: 64,000 steps of 128 examples, SGD with momentum 0.9 and rate 0.1, divided by
10 after 32,000 and 48,000, weight decay 1e-4 on all parameters, random crops of images padded by 4,
random flips.

Differences from the paper: trained on all 50,000 images (paper: 45,000); images are normalised by
channel (paper: the mean image is subtracted); shortcuts are projections where shapes change.

Hardware and time: not measured.
Command: python -m experiments.train --config configs/cifar/resnet.py:depth=20 --workdir runs/resnet
"""

from ml_collections import ConfigDict

from configs.cifar.wide_resnet import CLASSES, SHAPE, data
from experiments.experiment.base import base, parse_arg, shrink


def get_config(arg: str | None = None) -> ConfigDict:
    """`dataset`: cifar10 or cifar100; `depth`: 20, 32, 44, 56 or 110; `size`: networks."""
    arg = parse_arg(arg, dataset=("cifar10", "cifar100"), depth=(20, 32, 44, 56, 110), size=1)
    config = base()
    data(config, arg.dataset, pad=4)
    config.batch_size = 128

    config.backbone = dict(name="resnet.ResNet", depth=arg.depth)
    config.head = dict(
        name="dense.Dense", outputs=CLASSES[arg.dataset], kernel_init=dict(name="he_normal")
    )
    config.inference.size = arg.size

    config.steps = 64_000
    config.optimiser = dict(
        name="sgd",
        momentum=0.9,
        learning_rate=0.1,
        schedule=dict(name="step", boundaries=(32 / 64, 48 / 64), factor=0.1),
        l2=((".*", 1e-4),),
    )
    config.checkpoint.every = 5_000
    if arg.runlocal:
        shrink(config, SHAPE, CLASSES[arg.dataset], depth=8, width=4)
    return config
