"""Scalable ensembles and uncertainty: a pure library over JAX and Flax.

    p(y | x, D)  =  1/PM  sum_{p,m}  E_{u ~ N(mu_pm(x), Sigma_pm(x))} [ p(y | u) ]

The public modules; importing this package imports none of them:

    types          Latent, Likelihood, Model, State, Inference, Stage, and what parts derive from:
                   Backbone, Head, Network
    model          from_network: a Flax network and a likelihood as pure functions
    build builds any of these from a config (plain dicts); ConfigError
    inference      particles: where parameters come from (theta_p); its directions and kernels
    optimisers     optimiser, samplers, schedules
    ensembles      how members share one set of parameters (f_m)
    backbones      features (phi)
    heads          the Gaussian over the latents of one member (mu, Sigma)
    likelihoods    p(y | u)
    priors         p(theta)
    predictive     the integral over u and the mean over members
    stages steps after training, such as laplace and swag
    metrics metrics of predictions, in NumPy without JAX
    posthoc        calibration of predictions on held-out examples, such as temperature scaling
    conformal      sets and intervals with finite-sample coverage
    layers         layers that replace Flax's in a backbone
    restore        checkpoints of other layouts
    rules values for parameters by regular expressions over their paths
    cpu            kernels for CPU, and the target platform of a compilation

Names without a leading underscore are public, except in the files `replace`, `inputs`,
`interacting`, `spectral` and `sharded`, which are internal to their folders and may change.
"""
