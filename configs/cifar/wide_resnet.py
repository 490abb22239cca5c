"""WideResNet-28-10 on CIFAR-10 or CIFAR-100: dropout, HET, SNGP, HetSNGP, BatchEnsemble, MIMO,
ensembles.

Published (google/uncertainty-baselines, baselines/cifar/README.md), test NLL / accuracy / ECE:
                            CIFAR-10                CIFAR-100
  deterministic             .159 / 96.0 % / .0231   .875 / 79.8 % / .0857
  BatchEnsemble of 4        .136 / 96.3 % / .0177   .690 / 81.9 % / .0265
  MIMO of 3                 .123 / 96.4 % / .010    .690 / 82.0 % / .022
  dropout, 1 mask           .160 / 95.9 % / .0241   .830 / 79.6 % / .0501
  dropout, 30 masks         .145 / 96.1 % / .019    .785 / 80.7 % / .0487
  HET                                               .833 / 80.2 % / .059
  SNGP                      .134 / 96.0 % / .007    .805 / 80.2 % / .020
  SNGP, dropout, 10 masks   .131 / 95.9 % / .008    .750 / 79.6 % / .017
  ensemble of 4             .114 / 96.6 % / .010    .666 / 82.7 % / .021
  HET ensemble of 4                                 .671 / 82.7 % / .026
  SNGP ensemble of 4        .109 / 96.7 % / .005    .665 / 81.9 % / .011
The source has a script for HetSNGP, but no row.
Settings (same source, each method's script and model): SETTINGS and the rest below; SGD with
Nesterov momentum 0.9, one epoch of warm-up, rate times 0.2 after 30, 60 and 80 % of the epochs;
random crops of images padded by 2, random flips. L2 is in Keras' convention, twice that in ours, on
all parameters; with a GP, on the backbone's, and 1e-6 on the GP's weights (their prior N(0, I)
would be 1e-5), none on V and d. Dropout of 0.1: in residual blocks, or (SNGP, HetSNGP) of whole
filters around every convolution; in prediction it is active only with `masks`. Rates and factors
for CIFAR-100 are those in its scripts; for the other rows the README says only that the L2 was
tuned. BatchEnsemble (fast weights N(1, 0.5^2), in all layers) and MIMO (each example four times in
a step) multiply the rate by 0.2 after 40, 80 and 90 % of the epochs. Fast weights and the last bias
have half the rate, and fast weights have no L2. MIMO's loss is the sum over members in the source
and the mean here; three times the rate and a third of the L2 give the same steps.
The source's "improved" dropout also repeats examples, which is not implemented; its other parts are
  --config.backbone.residual_dropout=False --config.backbone.filterwise_dropout=True

Differences from the source: batch normalisation uses the whole batch, not a core's share; the
members of an ensemble see the same batches and differ by initial weights; warm-up starts at 1/97
(1/195) of the rate, not at 0; epochs are not cut to whole batches; corruptions are those of
`experiments/data/corruptions.py`, not CIFAR-10-C. SNGP: the precision is summed after training,
without augmentation and over all devices, not in the last epoch on one of them; dropout also
follows the second convolution of every block, not only in blocks with a projection. HetSNGP: the
inputs of V and d are all 640 features, not the GP's 128; the layer normalisation has no parameters.
HET and HetSNGP: V and d start LeCun normal, not Glorot uniform; probabilities are not clipped at
1e-5.

Hardware and time of the source: 8 TPUv2 cores; a network 1.2 h, HET 5 h, SNGP 2.6 h. Ours: not
measured. An ensemble that does not fit on a device: --config.inference.executor=loop, or a mesh.
Command: python -m experiments.train --config configs/cifar/wide_resnet.py:method=sngp,size=4 \
    --workdir runs/wrn
"""

from typing import Any

from ml_collections import ConfigDict

from configs.methods import METHODS, set_method
from experiments.experiment.base import base, parse_arg, shrink

SHAPE = (32, 32, 3)
CLASSES = {"cifar10": 10, "cifar100": 100}
# Statistics of CIFAR-10's training images, used for both sets.
NORMALISED = dict(mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616))

SETTINGS = {  # `rate` is for every 128 examples of the batch
    "deterministic": dict(epochs=200, batch_size=512, rate=0.1, l2=2e-4),
    "dropout": dict(epochs=200, batch_size=512, rate=0.05, l2=3e-4),
    "het": dict(epochs=200, batch_size=512, rate=0.1, l2=2e-4),
    "sngp": dict(epochs=250, batch_size=256, rate=0.08, l2=3e-4),
    "hetsngp": dict(epochs=300, batch_size=256, rate=0.04, l2=3e-4),
    "batch_ensemble": dict(epochs=250, batch_size=128, rate=0.1, l2=3e-4),
    "mimo": dict(epochs=250, batch_size=128, rate=0.1 * 3, l2=3e-4 / 3),
}
ENSEMBLES = {
    "batch_ensemble": dict(
        name="batch_ensemble",
        size=4,
        fast_weights=dict(name="batch_ensemble.gaussian", stddev=0.5),
    ),
    "mimo": dict(name="mimo", size=3, batch_repetitions=4),
}
CIFAR100_RATES = {"sngp": 0.04, "hetsngp": 0.08}
GP = dict(features=1_024, length_scale=20.0, kernel_init=dict(name="glorot_uniform"))
SNGP = {
    "sngp": dict(GP, amplitude=512**0.5, normalise=False),  # unscaled cosines
    "hetsngp": dict(GP, projection=128),
}
HET = dict(rank=6)
MEAN_FIELD = {"cifar10": 20.0, "cifar100": 7.5}
ENSEMBLE_MEAN_FIELD = 5e-4  # in the source, members are close to their posterior modes
LIKELIHOODS = {
    "het": dict(temperature=1.3, samples=10_000),
    "hetsngp": dict(temperature=0.3, samples=100),
}


def get_config(arg: str | None = None) -> ConfigDict:
    """`dataset`: cifar10 or cifar100; `method`: one of METHODS; `size`: networks; `masks`: of Monte
    Carlo dropout, or 0; `ensemble`: single, or one of ENSEMBLES in each deterministic network."""
    arg = parse_arg(
        arg,
        dataset=("cifar10", "cifar100"),
        method=METHODS,
        size=1,
        masks=0,
        ensemble=("single", *ENSEMBLES),
    )
    gaussian_process = "sngp" in arg.method
    within = arg.ensemble in ENSEMBLES
    if within and (arg.masks or arg.method != "deterministic"):
        raise ValueError(
            f"config option ensemble={arg.ensemble}: has settings only for deterministic "
            "networks without masks"
        )
    dropout = arg.masks and arg.method == "deterministic"
    settings = SETTINGS[arg.ensemble if within else "dropout" if dropout else arg.method]
    rate = settings["rate"]
    if arg.dataset == "cifar100":
        rate = CIFAR100_RATES.get(arg.method, rate)
    config = base()
    data(config, arg.dataset, pad=2)
    config.batch_size = settings["batch_size"]
    steps_per_epoch = 50_000 // config.batch_size

    config.backbone = dict(
        name="wide_resnet.WideResNet",
        depth=28,
        width_multiplier=10,
        residual_dropout=not gaussian_process,
        filterwise_dropout=gaussian_process,
    )
    if within:
        config.ensemble = dict(ENSEMBLES[arg.ensemble])
    elif arg.masks:
        config.ensemble = dict(name="mc_dropout", size=arg.masks, rate=0.1)
    elif gaussian_process:
        config.backbone.dropout = dict(name="dropout.Dropout", rate=0.1)
    config.head = dict(
        name="dense.Dense", outputs=CLASSES[arg.dataset], kernel_init=dict(name="he_normal")
    )
    set_method(config, arg.method, sngp=SNGP.get(arg.method, {}), het=HET, bound=6.0)
    config.likelihood.update(LIKELIHOODS.get(arg.method, {}))
    if arg.method == "sngp":
        single = MEAN_FIELD[arg.dataset]
        config.likelihood.mean_field = single if arg.size == 1 else ENSEMBLE_MEAN_FIELD
    config.inference.size = arg.size

    config.steps = settings["epochs"] * steps_per_epoch
    l2 = 2 * settings["l2"]
    weights = ("head/(mean/)?logits/kernel", 2e-6)
    config.optimiser = dict(
        name="sgd",
        momentum=0.9,
        nesterov=True,
        learning_rate=rate * config.batch_size / 128,
        schedule=dict(
            name="step",
            warmup_steps=steps_per_epoch,
            boundaries=tuple(e / 200 for e in ((80, 160, 180) if within else (60, 120, 160))),
            factor=0.2,
        ),
        l2=(weights, ("backbone", l2)) if gaussian_process else ((".*", l2),),
    )
    if arg.ensemble == "batch_ensemble":
        config.optimiser.l2 = (("fast_", 0.0), *config.optimiser.l2)
        config.optimiser.multipliers = (("fast_|head/logits/bias", 0.5),)
    config.checkpoint.every = 25 * steps_per_epoch
    if arg.runlocal:
        shrink(config, SHAPE, CLASSES[arg.dataset], depth=10, width_multiplier=1)
    return config


def data(
    config: ConfigDict,
    dataset: str,
    pad: int,
    read: dict[str, Any] = NORMALISED,
    held_out: bool = False,
) -> None:
    """Training images with random crops and flips; test images; the other CIFAR and SVHN as OOD.

    With `held_out`, the last 2 % of the training images are for validation.
    """
    test = dict(split="test")
    other = "cifar100" if dataset == "cifar10" else "cifar10"
    train = "train[:98%]" if held_out else "train"
    config.data.train = dict(name=dataset, split=train, **read)
    if held_out:
        config.data.validation = dict(split="train[98%:]")
    config.data.augment = (dict(name="crop", pad=pad), dict(name="flip"))
    config.logging.every = 100
    config.evaluators = dict(
        test=dict(name="classification", data=test),
        corruption=dict(name="corruption", data=test),
        ood=dict(
            name="ood",
            data=test,
            sets={
                other: dict(name=other, split="test", **read),
                "svhn": dict(name="svhn_cropped", split="test", **read),
            },
        ),
    )
