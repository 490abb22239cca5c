"""Out-of-distribution scores that are fitted to the outputs of a network for its training data.

`name='file'` in a config is the function `file` of `file.py` here,

    file(train: Outputs, **fields) -> scorer
    scorer(outputs: Outputs) -> scores [B], the higher, the more out of distribution

and a scorer is a NamedTuple of arrays. All is NumPy in float64. Features are those that the last
layer sees, logits those of the network, one member or the mean over members; scores that need the
last layer itself take it from `Outputs.last`, and exist for a dense one alone.

    mahalanobis           distance to the nearest class mean
    relative_mahalanobis  ... less that to the mean of all
    layers_mahalanobis    ... summed over several layers
    knn                   distance to the k-th nearest training example
    energy                -log sum exp of the logits
    react                 energy with activations cut at a quantile
    dice                  energy with the largest contributions of features to logits alone
    grad_norm             size of the last layer's gradient towards the uniform distribution
    kl_matching           KL divergence from the nearest of the classes' mean predictions
    residual              size of the part outside of the features' principal subspace
    vim                   ... on the scale of the logits, less the energy
    odin                  confidence after a step of the input towards it; needs the network

Scores without a fit (entropy, maximal logit, mutual information, the latents' variance, ...) are in
`metrics/scores.py`.

>>> import numpy as np
>>> train = Outputs(features=np.array([[0.0, 1.0], [1.0, 0.0], [0.8, 0.2]]))
>>> score = knn(train, k=1)
>>> score(Outputs(features=np.array([[0.0, 2.0], [-1.0, 0.0]]))).round(3)
array([0.   , 1.414])
"""

from uncertainty.ood._outputs import LastLayer, Outputs
from uncertainty.ood.dice import dice
from uncertainty.ood.energy import energy
from uncertainty.ood.grad_norm import grad_norm
from uncertainty.ood.kl_matching import kl_matching
from uncertainty.ood.knn import knn
from uncertainty.ood.layers_mahalanobis import layers_mahalanobis
from uncertainty.ood.mahalanobis import mahalanobis
from uncertainty.ood.odin import odin
from uncertainty.ood.react import react
from uncertainty.ood.relative_mahalanobis import relative_mahalanobis
from uncertainty.ood.residual import residual
from uncertainty.ood.vim import vim

__all__ = [
    "LastLayer",
    "Outputs",
    "dice",
    "energy",
    "grad_norm",
    "kl_matching",
    "knn",
    "layers_mahalanobis",
    "mahalanobis",
    "odin",
    "react",
    "relative_mahalanobis",
    "residual",
    "vim",
]
