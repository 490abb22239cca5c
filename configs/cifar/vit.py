"""ViT-B/32 of ImageNet-21k (AugReg), fine-tuned on CIFAR-10 and CIFAR-100 at 384 x 384.

Published (google-research/big_vision, configs/transfer.py), test accuracy, mean of 5:
  CIFAR-10    98.55 % (98.46 to 98.60)
  CIFAR-100   91.35 % (91.09 to 91.62)
Nothing is published for ensembles.
Settings (same source): 98 % of the training images, resized to 448, random crops of 384, random
flips; batches of 512, 10,000 steps of SGD with momentum 0.9, warm-up of 500, cosine to 0, gradients
clipped at norm 1, no weight decay, rate 0.003 (CIFAR-10) or 0.01; class token, head from zero.
Ours: BatchEnsemble of 4 in every block, fast weights around 1 at the same rate.

Differences from the source: random crops of the padded centre crop, not of the larger image;
momentum is float32, not bfloat16; warm-up starts at 1/500 of the rate, not at 0; with `size` above
1 heads are initialised at random, since networks with zero heads would remain equal.

Hardware and time: not measured. The bucket needs `pip install '.[gcs]'`; a copy on disk:
--config.pretrained.path=DIR/B_32.npz.
Command: python -m experiments.train --config configs/cifar/vit.py:dataset=cifar100 \\
    --workdir runs/vit
"""

from ml_collections import ConfigDict

from configs.cifar.wide_resnet import CLASSES, data
from experiments.experiment.base import base, parse_arg, shrink

SIZE, LARGE = 384, 448
READ = dict(resize=LARGE, size=SIZE, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
RATES = {"cifar10": 0.003, "cifar100": 0.01}
RELEASE = "B_32-i21k-300ep-lr_0.001-aug_light1-wd_0.1-do_0.0-sd_0.0.npz"


def get_config(arg: str | None = None) -> ConfigDict:
    """`dataset`: cifar10 or cifar100; `ensemble`: single or batch_ensemble; `size`: networks."""
    arg = parse_arg(
        arg, dataset=("cifar10", "cifar100"), ensemble=("single", "batch_ensemble"), size=1
    )
    config = base()
    data(config, arg.dataset, pad=(LARGE - SIZE) // 2, read=READ, held_out=True)
    config.batch_size = 512

    config.backbone = dict(name="vit.ViT", variant="B/32")
    config.head = dict(name="dense.Dense", outputs=CLASSES[arg.dataset])
    keep = ("head/",)
    if arg.size == 1:
        config.head.kernel_init = dict(name="zeros_init")
    if arg.ensemble == "batch_ensemble":
        config.ensemble = dict(
            name="batch_ensemble",
            size=4,
            fast_weights=dict(name="batch_ensemble.gaussian", stddev=0.5),
        )
        keep = ("head/", "/fast_")
    config.pretrained = dict(path=f"gs://vit_models/augreg/{RELEASE}", layout="vit", keep=keep)
    config.inference.size = arg.size

    config.steps = 10_000
    config.optimiser = dict(
        name="sgd",
        momentum=0.9,
        learning_rate=RATES[arg.dataset],
        schedule=dict(name="cosine", warmup_steps=500),
        clip=1.0,
    )
    config.checkpoint.every = 1_000
    config.evaluation.batch_size = 512
    config.evaluation.every = 1_000
    if arg.runlocal:
        shrink(
            config, (SIZE, SIZE, 3), CLASSES[arg.dataset], variant="tiny", patch_size=32, depth=2
        )
    return config
