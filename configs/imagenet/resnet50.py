"""ResNet-50 on ImageNet: deterministic, Monte Carlo dropout, HET, SNGP, HetSNGP, ensembles.

Published (google/uncertainty-baselines, baselines/imagenet/README.md), test NLL / accuracy / ECE:
  deterministic       .939 / 76.2 % / .032
  dropout, 10 masks   .919 / 76.6 % / .026
  HET                 .898 / 77.5 % / .033
  SNGP                .931 / 76.1 % / .013
  ensemble of 4       .857 / 77.9 % / .017
  HET ensemble of 4   .790 / 79.5 % / .015
  SNGP ensemble of 4  .851 / 78.1 % / .039
The source has a script for HetSNGP, but no row.
Settings (same source, each method's script and model): SETTINGS and the rest below; batches of
4,096 (128 on each of 32 cores), SGD with Nesterov momentum 0.9, 5 epochs of warm-up, rate times 0.1
after 1/3, 2/3 and 8/9 of the epochs; L2 of 1e-4 in Keras' convention, twice that in ours, on
kernels and biases but not on norms; dropout of whole filters after every ReLU; bfloat16.

Differences from the source: training images are random crops of the padded centre crop, not
Inception crops of random area and aspect, which costs accuracy; batch normalisation uses the whole
batch, not 128 examples; the members of an ensemble see the same batches and differ by initial
weights; warm-up does not start at 0; the stem's pooling pads as 'SAME'. SNGP: the stem's norm is
bounded too; all except the bounds and the head is bfloat16, in the source float32 (not HetSNGP);
the precision is summed after training over all devices, not in the last epoch on one of them.
HET and HetSNGP: V and d start LeCun normal, not Glorot uniform; probabilities are not clipped at
1e-5.

Hardware and time of the source: 32 TPUv2 cores; a network 5 h, HET 7.5 h; SNGP 5 h on TPUv3. Ours:
not measured. On fewer devices: --config.inference.accumulate=8 runs each batch in 8 parts.
HET's 5,000 draws are 2e10 softmax terms per step, forward and again backward. They are computed in
chunks of at most 2^26 numbers, 256 MB over all devices for each network that runs at a time, and
the gradient stores 16 MB for each of 500 chunks: 8 GB over all devices, 0.1 GB with accumulate=8.
For fewer draws: --config.likelihood.samples=250.
Command: python -m experiments.train --config configs/imagenet/resnet50.py:method=sngp,size=4 \
    --workdir runs/resnet50
"""

from ml_collections import ConfigDict

from configs.methods import METHODS, set_method
from experiments.experiment.base import base, parse_arg, shrink

SHAPE, CLASSES = (224, 224, 3), 1000
READ = dict(  # resized so that the shorter side is 256, then cropped to the central 224 x 224
    resize=256, size=224, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
)

SETTINGS = {  # `rate` is per 256 examples of the batch
    "deterministic": dict(epochs=90, rate=0.1),
    "dropout": dict(epochs=200, rate=0.05),  # epochs: the script's default
    "het": dict(epochs=180, rate=0.1),
    "sngp": dict(epochs=90, rate=0.1),
    "hetsngp": dict(epochs=270, rate=0.07),
}
SMALL = dict(name="normal", stddev=0.01)
SNGP = dict(  # unscaled cosines of unnormalised features
    features=1_024, length_scale=20.0, amplitude=512**0.5, normalise=False, kernel_init=SMALL
)
HET = dict(rank=15)
LIKELIHOODS = {
    "het": dict(temperature=1.5, samples=5_000),
    "sngp": dict(mean_field=1.0),
    "hetsngp": dict(temperature=1.25, samples=5_000),
}


def get_config(arg: str | None = None) -> ConfigDict:
    """`method`: one of METHODS; `size`: networks; `masks`: of Monte Carlo dropout, or 0."""
    arg = parse_arg(arg, method=METHODS, size=1, masks=0)
    settings = SETTINGS["dropout" if arg.masks and arg.method == "deterministic" else arg.method]
    config = base()
    test = dict(split="validation")

    config.data.train = dict(name="imagenet2012", split="train", **READ)
    config.data.augment = (dict(name="crop", pad=28), dict(name="flip"))
    config.batch_size = 4_096
    steps_per_epoch = 1_281_167 // config.batch_size

    config.backbone = dict(name="resnet.ResNet", depth=50, dtype="bfloat16")
    if arg.masks:
        config.ensemble = dict(name="mc_dropout", size=arg.masks, rate=0.05)
        config.backbone.filterwise_dropout = True
    config.head = dict(name="dense.Dense", outputs=CLASSES, kernel_init=SMALL)
    set_method(config, arg.method, sngp=SNGP, het=HET, bound=6.0)
    config.likelihood.update(LIKELIHOODS.get(arg.method, {}))
    if arg.method == "sngp" and arg.size > 1:  # in the source, members are posterior modes
        config.likelihood.mean_field = 1e-9
    config.inference.size = arg.size

    config.steps = settings["epochs"] * steps_per_epoch
    config.optimiser = dict(
        name="sgd",
        momentum=0.9,
        nesterov=True,
        learning_rate=settings["rate"] * config.batch_size / 256,
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
