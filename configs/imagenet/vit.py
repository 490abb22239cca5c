"""ViT on ImageNet from scratch, after "Better plain ViT baselines" (Beyer et al. 2022).

Published (google-research/big_vision, configs/vit_s16_i1k.py): ViT-S/16, 90 epochs, 76.5 % top-1 on
the validation set, 6 to 7 h on a TPUv3-8.
Settings (same source): 99 % of the training images, batches of 1,024, Adam at 1e-3, warm-up of
10,000 steps, cosine to 0, gradients clipped at norm 1, decay of kernels by 1e-4 a step at the peak
(here times the rate: 0.1), mean over tokens, mixup 0.2, RandAugment of 2 operations of a magnitude
that rotates by 30 degrees (10 there, 30 here), head from zero.
Ours: bfloat16, and every other variant than S/16, with the settings of S/16.

Differences from the source: random windows of the padded centre crop, not Inception crops, which
costs accuracy; 14 RandAugment operations, not its 16; mixup weights for each example, not for each
batch; learned positions, not sines and cosines; no hidden layer before the head.

Hardware and time: not measured.
Command: python -m experiments.train --config configs/imagenet/vit.py --workdir runs/vit
"""

from ml_collections import ConfigDict

from configs.base import base, parse_arg, shrink

SHAPE, CLASSES = (224, 224, 3), 1000
VARIANTS = ("S/16", "Ti/16", "S/32", "B/16", "B/32", "L/16", "L/32")
READ = dict(resize=256, size=224, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


def get_config(arg: str | None = None) -> ConfigDict:
    """`variant`: one of VARIANTS; `size`: networks."""
    arg = parse_arg(arg, variant=VARIANTS, size=1)
    config = base()
    test = dict(name="imagenet2012", split="validation", **READ)

    config.data.train = dict(name="imagenet2012", split="train[:99%]", **READ)
    config.data.validation = dict(name="imagenet2012", split="train[99%:]", **READ)
    config.data.augment = (
        dict(name="crop", pad=28),
        dict(name="flip"),
        dict(name="rand_augment", num_ops=2, magnitude=30),
        dict(name="mixup", alpha=0.2),
    )
    config.batch_size = 1_024

    config.backbone = dict(name="vit.ViT", variant=arg.variant, pooling="gap", dtype="bfloat16")
    config.head = dict(name="dense.Dense", outputs=CLASSES, kernel_init=dict(name="zeros_init"))
    config.inference.size = arg.size

    config.steps = 90 * 1_268_355 // config.batch_size
    config.optimiser = dict(
        name="adam",
        learning_rate=1e-3,
        schedule=dict(name="cosine", warmup_steps=10_000),
        clip=1.0,
        weight_decay=((".*kernel", 0.1),),
    )
    config.logging.every = 50
    config.checkpoint.every = 5_000

    config.evaluation.batch_size = 1_024
    config.evaluation.every = 10_000
    config.evaluators = dict(
        test=dict(name="classification", data=test),
        ood=dict(
            name="ood",
            data=test,
            sets=dict(places365=dict(name="places365_small", split="validation", **READ)),
        ),
    )
    if arg.runlocal:
        shrink(config, SHAPE, CLASSES, variant="tiny", patch_size=32)
    return config
