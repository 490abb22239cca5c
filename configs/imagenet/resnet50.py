"""ResNet-50 on ImageNet: deterministic, ensemble, Monte Carlo dropout.

Published (google/uncertainty-baselines, baselines/imagenet/README.md), test NLL / accuracy / ECE:
  deterministic      .939 / 76.2 % / .032
  ensemble of 4      .857 / 77.9 % / .017
  dropout, 10 masks  .919 / 76.6 % / .026
Settings (same source, deterministic.py and dropout.py): 90 epochs (with dropout 200, the script's
default) in batches of 4,096 (128 on each of 32 cores), SGD with Nesterov momentum 0.9 and rate 0.1
(with dropout 0.05) for every 256 examples of the batch, 5 epochs of warm-up, times 0.1 after 30, 60
and 80 of 90; L2 of 1e-4 in Keras' convention, twice that in ours, on kernels and biases but not on
norms; bfloat16; dropout 0.05 of whole filters after every ReLU.

Differences from the source: training images are random windows of the padded centre crop, not
Inception crops of random area and aspect, which costs accuracy; batch normalisation sees the whole
batch, not 128 examples; the members of an ensemble see the same batches and differ by initial
weights; warm-up does not begin at 0; the stem's pooling pads as 'SAME'.

Hardware and time there: 32 TPUv2 cores, 5 h for a network. Ours: not measured.
On fewer devices: --config.inference.accumulate=8 runs each batch in 8 parts.
Command: python -m experiments.train --config configs/imagenet/resnet50.py --workdir runs/resnet50
"""

from ml_collections import ConfigDict

from configs.base import base, parse_arg, shrink

SHAPE, CLASSES = (224, 224, 3), 1000
READ = dict(  # the centre of 224 x 224 after the shorter side has become 256 long
    resize=256, size=224, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
)


def get_config(arg: str | None = None) -> ConfigDict:
    """`size`: networks; `masks`: of Monte Carlo dropout, or 0."""
    arg = parse_arg(arg, size=1, masks=0)
    config = base()
    test = dict(name="imagenet2012", split="validation", **READ)
    epochs = 200 if arg.masks else 90

    config.data.train = dict(name="imagenet2012", split="train", **READ)
    config.data.augment = (dict(name="crop", pad=28), dict(name="flip"))
    config.batch_size = 4_096
    steps_per_epoch = 1_281_167 // config.batch_size

    config.backbone = dict(name="resnet.ResNet", depth=50, dtype="bfloat16")
    if arg.masks:
        config.ensemble = dict(name="mc_dropout", size=arg.masks, rate=0.05)
        config.backbone.filterwise_dropout = True
    config.head = dict(
        name="dense.Dense", outputs=CLASSES, kernel_init=dict(name="normal", stddev=0.01)
    )
    config.inference.size = arg.size

    config.steps = epochs * steps_per_epoch
    config.optimiser = dict(
        name="sgd",
        momentum=0.9,
        nesterov=True,
        learning_rate=(0.05 if arg.masks else 0.1) * config.batch_size / 256,
        schedule=dict(
            name="step",
            warmup_steps=5 * steps_per_epoch,
            boundaries=(30 / 90, 60 / 90, 80 / 90),
            factor=0.1,
        ),
        l2=(("norm", 0.0), ("kernel|bias", 2e-4)),
    )
    config.logging.every = 100
    config.checkpoint.every = 5 * steps_per_epoch

    config.evaluation.batch_size = 1_024
    config.evaluators = dict(
        test=dict(name="classification", data=test),
        ood=dict(
            name="ood",
            data=test,
            sets=dict(places365=dict(name="places365_small", split="validation", **READ)),
        ),
    )
    return shrink(config, SHAPE, CLASSES, depth=18, width=4) if arg.runlocal else config
