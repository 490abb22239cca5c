"""What every experiment has, with the defaults that a config changes."""

from typing import Any

from ml_collections import ConfigDict


def base() -> ConfigDict:
    """The sections of a config, in the order of the equation."""
    return ConfigDict(
        dict(
            seed=0,
            # data
            data=dict(train=dict(name="digits", split="train"), augment=()),
            batch_size=128,  # of all devices and processes together
            # features, members, latent, likelihood
            backbone=dict(name="mlp.MLP"),
            ensemble=dict(name="single"),
            head=dict(name="dense.Dense", outputs=10),
            likelihood=dict(name="softmax"),
            # parameters
            inference=dict(name="particles", size=1, direction=dict(name="independent")),
            # optimisation
            steps=1_000,
            optimiser=dict(name="adam", learning_rate=1e-3, schedule=dict(name="constant")),
            on_fault="stop",  # a particle whose loss is not finite: 'stop' the run or 'freeze' it
            # evaluation
            evaluation=dict(
                batch_size=500,
                every=0,  # steps between evaluations on data.validation; 0: none
            ),
            evaluators=dict(),  # name -> dict(name=file of experiments/evaluators, its fields)
            # how it runs; none of these changes a number
            mesh=dict(),  # axis -> devices, e.g. dict(particle=4, data=2); default: all for data
            sharding=(),  # rules from parameter paths to mesh axes, e.g. ('expert.*', ('expert',))
            logging=dict(every=50, tensorboard=False, profile=()),
            checkpoint=dict(every=1_000, keep=2),
        ),
        type_safe=False,
    )


def parse_arg(arg: str | None, **defaults: Any) -> ConfigDict:
    """The options after `--config file.py:`, such as `runlocal,size=4`.

    A name alone means True. Values take the type of their default. `runlocal` is always known.

    Raises:
      ValueError: an unknown option or a value of another type.
    """
    options = dict(runlocal=False, **defaults)
    for item in filter(None, (arg or "").split(",")):
        key, _, value = item.partition("=")
        if key not in options:
            raise ValueError(f"config option {key!r}: not one of {', '.join(sorted(options))}")
        kind = type(options[key])
        if kind is bool:
            if value.lower() not in ("", "true", "false", "1", "0"):
                raise ValueError(f"config option {item!r}: true or false")
            options[key] = value.lower() in ("", "true", "1")
        else:
            try:
                options[key] = kind(value)
            except ValueError:
                raise ValueError(f"config option {item!r}: {kind.__name__} is needed") from None
    return ConfigDict(options)


def shrink(config: ConfigDict) -> ConfigDict:
    """`:runlocal`: the same program in seconds on a laptop, on noise in place of large data."""
    config.steps = 4
    config.batch_size = min(config.batch_size, 8)
    config.evaluation.batch_size = 8
    config.logging.every = 1
    config.checkpoint.every = 2
    return config
