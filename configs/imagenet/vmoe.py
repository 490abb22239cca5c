"""V-MoE-S/32 on ImageNet from scratch, and E3-S/32 with its settings.

Published (google-research/vmoe, configs/vmoe_paper/vmoe_s32_last2_ilsvrc2012_randaug_light1.py),
V-MoE (E=8, K=2, Last 2), mean of 3 seeds: 76.8 % top-1 on the 1 % of the training images that are
held out, 73.1 % on the validation set, which is `test` here; 5 h 50 min on a TPUv3-32.
For E3 from scratch (`members=2`: K=1, M=2) a checkpoint is released, and no accuracy.
Settings (same source, and configs/vmoe_paper/common.py): 300 epochs of 99 % of the training
images, batches of 8,192, Adam at 3e-3, warm-up of 10,000 steps, linear to 1e-5, gradients clipped
at norm 1, decay of kernels by 0.1 times the rate, sigmoid, mixup 0.2, RandAugment of 2 operations
of magnitude 10, width 512, 8 blocks, class token, a hidden layer (tanh) before the head, experts in
the blocks 5 and 7, dropout of 0.2 within experts, which start equal; capacity factor 1.05 in
training and 4 after, routed in groups of 8 images; head from zero, its bias from -log 1000.

Differences from the source: random crops of the padded centre crop, not Inception crops, which
costs accuracy; 14 RandAugment operations, not its 16, whose magnitude 10 is of 10 (here 30 of 30,
the same rotation); mixup weights for each example, not for each device's batch; all except the
router and the head is bfloat16, in the source the products with routing weights; warm-up starts at
1e-4 of the rate, not at 0.

Hardware and time: not measured. On fewer devices: --config.inference.accumulate=8.
Command: python -m experiments.train --config configs/imagenet/vmoe.py --workdir runs/vmoe
"""

import math

from ml_collections import ConfigDict

from configs.imagenet.vit import CLASSES, READ, SHAPE, TRAIN
from experiments.experiment.base import base, parse_arg, shrink


def get_config(arg: str | None = None) -> ConfigDict:
    """`members`: 1 for V-MoE, 2 for E3; `size`: networks."""
    arg = parse_arg(arg, members=(1, 2), size=1)
    config = base()
    test = dict(split="validation")

    config.data.train = dict(name="imagenet2012", split="train[:99%]", **READ)
    config.data.validation = dict(split="train[99%:]")
    config.data.augment = (
        dict(name="crop", pad=28),
        dict(name="flip"),
        dict(name="rand_augment", num_ops=2, magnitude=30),
        dict(name="mixup", alpha=0.2),
    )
    config.batch_size = 8_192

    router = dict(
        name="routers.TopK",
        k=2 // arg.members,
        capacity_factor=1.05,
        eval_capacity_factor=4.0,
        group_size=8,
    )
    config.backbone = dict(
        name="vit.ViT",
        variant="S/32",
        width=512,
        depth=8,
        num_heads=8,
        mlp_dim=2048,
        representation=512,
        experts=dict(name="experts.MoE", num_experts=8, router=router, dropout=0.2),
        expert_blocks="last 2",
        dtype="bfloat16",
    )
    if arg.members > 1:
        config.ensemble = dict(name="e3", size=arg.members)
    config.head = dict(
        name="dense.Dense",
        outputs=CLASSES,
        kernel_init=dict(name="zeros_init"),
        bias_init=dict(name="constant", value=-math.log(CLASSES)),
    )
    config.likelihood = dict(name="sigmoid")
    config.inference.size = arg.size

    config.steps = 300 * TRAIN // config.batch_size
    config.optimiser = dict(
        name="adam",
        learning_rate=3e-3,
        schedule=dict(name="linear", warmup_steps=10_000, final=1e-5 / 3e-3),
        clip=1.0,
        weight_decay=((".*kernel", 0.1),),
    )
    config.logging.every = 50
    config.checkpoint.every = 5_000

    config.evaluation.batch_size = 1_024
    config.evaluation.every = 5_000
    config.evaluators = dict(
        test=dict(name="classification", data=test),
        ood=dict(
            name="ood",
            data=test,
            sets=dict(places365=dict(name="places365_small", split="validation", **READ)),
        ),
    )
    if arg.runlocal:
        tiny = dict(
            variant="tiny",
            patch_size=32,
            width=32,
            depth=2,
            num_heads=2,
            mlp_dim=64,
            representation=32,
            expert_blocks="last 1",
        )
        shrink(config, SHAPE, CLASSES, **tiny)
    return config
