"""Scalable ensembles and uncertainty: a pure library over JAX and Flax.

    p(y | x, D)  =  1/PM  sum_{p,m}  E_{u ~ N(mu_pm(x), Sigma_pm(x))} [ p(y | u) ]

What is public is `__all__` here, imported where it is asked for:

    from uncertainty import fit, from_module, particles, predict, softmax

    your own model  from_module, call_of, OwnBackbone; from_network for one that returns a Latent
    in memory       fit, run_stage, predict, start_from; what they give: Classes, Gaussians
    parameters      particles, in the directions independent, svgd, wgd; samplers sgld, psgld, sghmc
    members         batch_ensemble, mc_dropout, rank1, masksembles, mimo, multi_head, packed, e3;
                    epinet, hypermodel, randomised_prior
    features        MLP, LeNet5, ConvNet, ResNet, WideResNet, ViT
    latents         Dense, Heteroscedastic, HeteroscedasticXL, Laplace, MeanVariance, Sngp
    p(y | u)        softmax, sigmoid, gaussian
    objectives      label_smoothing, mean_teacher
    after training  laplace, swag, snapshots, select, batch_statistics
    types           Latent, Likelihood, Model, State, ...; parts derive from Backbone and Head

and of the modules below, `__all__` or else the names without a leading underscore. A package whose
files have a method each exports the methods (`from uncertainty.posthoc import temperature`); of the
others the files are public, as names recur in them (`layers.packed.Dense`):

    build           any of these from a config (plain dicts)
    priors          p(theta)
    metrics         metrics of predictions, in NumPy without JAX
    posthoc         calibration of predictions on held-out examples, such as temperature scaling
    conformal       sets and intervals with finite-sample coverage
    ood             out-of-distribution scores that are fitted to training data
    combining       members of several runs, chosen by held-out examples
    layers          layers that replace Flax's in a backbone
    optimisers      optimiser and schedules of configs
    restore         checkpoints of other layouts
    rules           values for parameters by regular expressions over their paths
    cpu             kernels for CPU, and the target platform of a compilation
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from uncertainty.backbones.conv_net import ConvNet
    from uncertainty.backbones.lenet import LeNet5
    from uncertainty.backbones.mlp import MLP
    from uncertainty.backbones.resnet import ResNet
    from uncertainty.backbones.vit import ViT
    from uncertainty.backbones.wide_resnet import WideResNet
    from uncertainty.distributions import Classes, Gaussians
    from uncertainty.ensembles.batch_ensemble import batch_ensemble
    from uncertainty.ensembles.e3 import e3
    from uncertainty.ensembles.epinet import epinet
    from uncertainty.ensembles.hypermodel import hypermodel
    from uncertainty.ensembles.masksembles import masksembles
    from uncertainty.ensembles.mc_dropout import mc_dropout
    from uncertainty.ensembles.mimo import mimo
    from uncertainty.ensembles.multi_head import multi_head
    from uncertainty.ensembles.packed import packed
    from uncertainty.ensembles.randomised_prior import randomised_prior
    from uncertainty.ensembles.rank1 import rank1
    from uncertainty.ensembles.single import single
    from uncertainty.heads.dense import Dense
    from uncertainty.heads.heteroscedastic import Heteroscedastic, HeteroscedasticXL
    from uncertainty.heads.laplace import Laplace
    from uncertainty.heads.mean_variance import MeanVariance
    from uncertainty.heads.sngp import Sngp
    from uncertainty.in_memory import fit, predict, run_stage, start_from
    from uncertainty.inference.directions.independent import independent
    from uncertainty.inference.directions.svgd import svgd
    from uncertainty.inference.directions.wgd import wgd
    from uncertainty.inference.executors import mapping
    from uncertainty.inference.kernels.imq import imq
    from uncertainty.inference.kernels.linear import linear
    from uncertainty.inference.kernels.probability_product import probability_product
    from uncertainty.inference.kernels.rbf import rbf
    from uncertainty.inference.particles import particles
    from uncertainty.likelihoods import gaussian, sigmoid, softmax
    from uncertainty.model import from_network
    from uncertainty.objectives.label_smoothing import label_smoothing
    from uncertainty.objectives.mean_teacher import mean_teacher
    from uncertainty.optimisers.samplers import psgld, sghmc, sgld
    from uncertainty.own import OwnBackbone, call_of, from_module
    from uncertainty.predictive import mixture
    from uncertainty.specs import ConfigError
    from uncertainty.stages.batch_statistics import batch_statistics
    from uncertainty.stages.laplace import laplace
    from uncertainty.stages.select import select
    from uncertainty.stages.snapshots import snapshots
    from uncertainty.stages.swag import swag
    from uncertainty.types import (
        Backbone,
        Direction,
        Head,
        Inference,
        Kernel,
        Latent,
        Likelihood,
        Model,
        Network,
        Objective,
        Prior,
        Stage,
        State,
    )

_MODULES = {
    "backbones.conv_net": "ConvNet",
    "backbones.lenet": "LeNet5",
    "backbones.mlp": "MLP",
    "backbones.resnet": "ResNet",
    "backbones.vit": "ViT",
    "backbones.wide_resnet": "WideResNet",
    "distributions": "Classes Gaussians",
    "ensembles.batch_ensemble": "batch_ensemble",
    "ensembles.e3": "e3",
    "ensembles.epinet": "epinet",
    "ensembles.hypermodel": "hypermodel",
    "ensembles.masksembles": "masksembles",
    "ensembles.mc_dropout": "mc_dropout",
    "ensembles.mimo": "mimo",
    "ensembles.multi_head": "multi_head",
    "ensembles.packed": "packed",
    "ensembles.randomised_prior": "randomised_prior",
    "ensembles.rank1": "rank1",
    "ensembles.single": "single",
    "heads.dense": "Dense",
    "heads.heteroscedastic": "Heteroscedastic HeteroscedasticXL",
    "heads.laplace": "Laplace",
    "heads.mean_variance": "MeanVariance",
    "heads.sngp": "Sngp",
    "in_memory": "fit predict run_stage start_from",
    "inference.directions.independent": "independent",
    "inference.directions.svgd": "svgd",
    "inference.directions.wgd": "wgd",
    "inference.executors": "mapping",
    "inference.kernels.imq": "imq",
    "inference.kernels.linear": "linear",
    "inference.kernels.probability_product": "probability_product",
    "inference.kernels.rbf": "rbf",
    "inference.particles": "particles",
    "likelihoods": "gaussian sigmoid softmax",
    "model": "from_network",
    "objectives.label_smoothing": "label_smoothing",
    "objectives.mean_teacher": "mean_teacher",
    "optimisers.samplers": "psgld sghmc sgld",
    "own": "OwnBackbone call_of from_module",
    "predictive": "mixture",
    "specs": "ConfigError",
    "stages.batch_statistics": "batch_statistics",
    "stages.laplace": "laplace",
    "stages.select": "select",
    "stages.snapshots": "snapshots",
    "stages.swag": "swag",
    "types": "Backbone Direction Head Inference Kernel Latent Likelihood Model Network Objective "
    "Prior Stage State",
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names.split()}

__all__ = [
    "MLP",
    "Backbone",
    "Classes",
    "ConfigError",
    "ConvNet",
    "Dense",
    "Direction",
    "Gaussians",
    "Head",
    "Heteroscedastic",
    "HeteroscedasticXL",
    "Inference",
    "Kernel",
    "Laplace",
    "Latent",
    "LeNet5",
    "Likelihood",
    "MeanVariance",
    "Model",
    "Network",
    "Objective",
    "OwnBackbone",
    "Prior",
    "ResNet",
    "Sngp",
    "Stage",
    "State",
    "ViT",
    "WideResNet",
    "batch_ensemble",
    "batch_statistics",
    "call_of",
    "e3",
    "epinet",
    "fit",
    "from_module",
    "from_network",
    "gaussian",
    "hypermodel",
    "imq",
    "independent",
    "label_smoothing",
    "laplace",
    "linear",
    "mapping",
    "masksembles",
    "mc_dropout",
    "mean_teacher",
    "mimo",
    "mixture",
    "multi_head",
    "packed",
    "particles",
    "predict",
    "probability_product",
    "psgld",
    "randomised_prior",
    "rank1",
    "rbf",
    "run_stage",
    "select",
    "sghmc",
    "sgld",
    "sigmoid",
    "single",
    "snapshots",
    "softmax",
    "start_from",
    "svgd",
    "swag",
    "wgd",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
