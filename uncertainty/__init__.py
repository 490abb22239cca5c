"""Scalable ensembles and uncertainty: a pure library over JAX and Flax.

    p(y | x, D)  =  1/PM  sum_{p,m}  E_{u ~ N(mu_pm(x), Sigma_pm(x))} [ p(y | u) ]

Public, each imported from where it is; importing this package imports nothing:

    types          Latent, Likelihood, Model, State, Inference, Stage, and what parts derive from:
                   Backbone, Head, Network
    model          from_network: a Flax network and a likelihood as pure functions
    build          from a config, as plain dicts, to any of it; ConfigError
    inference      particles: where parameters come from (theta_p); its directions and kernels
    optimisers     optimiser, samplers, schedules
    ensembles      how members share one set of parameters (f_m)
    backbones      features (phi)
    heads          the Gaussian over the latents of one member (mu, Sigma)
    likelihoods    p(y | u)
    priors         p(theta)
    predictive     the integral over u and the mean over members
    stages         what follows training
    metrics        of predictions as NumPy arrays, without JAX
    layers         layers that replace Flax's in a backbone
    restore        checkpoints of other layouts
    rules          what is set by regular expressions over the paths of parameters
    cpu            kernels for CPU, and the platform that is compiled for

Public in a file is what has no leading underscore. What only other files of a folder use stands in
the files `replace`, `inputs`, `interacting`, `spectral` and `sharded`, and may change.
"""
