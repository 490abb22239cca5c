"""The sections of every config with their defaults; the only module that configs import."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from experiments.data.derived import derived as derived
from experiments.data.derived import specs
from experiments.data.own import MADE_OF_OTHERS, needs_no_file
from uncertainty.build import ConfigError


def base() -> ConfigDict:
    """The sections of a config, in the order of the equation."""
    return ConfigDict(
        dict(
            seed=0,
            # data: a spec with a split and no name, here or in an evaluator, is a part of
            # data.train
            data=dict(
                train=dict(name="digits", split="train"),
                augment=(),
                streams=dict(),  # name -> spec: further data in each batch
                # validation: a spec; particles: the examples of each particle (data/assignment.py)
                # test: a spec, that of evaluators without `data`; ood: name -> spec, those of
                # evaluators without `sets`
            ),
            batch_size=128,  # of all devices and processes together
            # features, members, latent, likelihood
            backbone=dict(name="mlp.MLP"),
            ensemble=dict(name="single"),
            head=dict(name="dense.Dense", outputs=10),  # outputs=None: those of the data
            likelihood=dict(name="softmax"),
            objective=dict(),  # of uncertainty/objectives; empty: the likelihood
            # parameters
            pretrained=dict(),  # path, layout, rules, keep: experiments/experiment/initialise.py
            inference=dict(name="particles", size=1, direction=dict(name="independent")),
            # optimisation
            steps=1_000,
            optimiser=dict(name="adam", learning_rate=1e-3, schedule=dict(name="constant")),
            stages=(),  # run after training, such as dict(name='laplace')
            on_fault="stop",  # at a loss that is not finite: 'stop', or 'freeze' the particle
            # evaluation
            evaluation=dict(
                batch_size=500,
                every=0,  # steps between evaluations on data.validation; 0: none
            ),
            evaluators=dict(),  # name -> dict(name=file of experiments/evaluators, its fields)
            # execution; none of these changes results
            mesh=dict(),  # axis -> devices, e.g. dict(particle=4, data=2); default: all for data
            sharding=(),  # parameter paths -> mesh axes, e.g. ('.*dense0/kernel', (None, 'model'))
            logging=dict(every=50, tensorboard=False, profile=()),
            checkpoint=dict(every=1_000, keep=2),
        ),
        type_safe=False,
    )


def floor_of(reference: str, **fields: Any) -> dict[str, float]:
    """The distances of `evaluators.posterior.floor`; empty if the reference does not exist yet."""
    from experiments.evaluators import posterior

    return posterior.floor(reference, **fields) if posterior.is_made(reference) else {}


def parse_arg(arg: str | None, **defaults: Any) -> ConfigDict:
    """The options after `--config file.py:`, such as `runlocal,size=4`.

    A name alone means True. Values are converted to the type of their default; a tuple lists the
    allowed values, the default first. `runlocal` is always allowed.

    Raises:
      ConfigError: an unknown option, or a value of another type or that is not allowed.
    """
    allowed = {key: value for key, value in defaults.items() if isinstance(value, tuple)}
    options = dict(runlocal=False, **defaults)
    options |= {key: values[0] for key, values in allowed.items()}
    for item in filter(None, (arg or "").split(",")):
        key, _, value = item.partition("=")
        if key not in options:
            raise ConfigError(f"config option {key!r}: not one of {', '.join(sorted(options))}")
        kind = type(options[key])
        if kind is bool:
            if value.lower() not in ("", "true", "false", "1", "0"):
                raise ConfigError(f"config option {item!r}: true or false")
            options[key] = value.lower() in ("", "true", "1")
        else:
            try:
                options[key] = kind(value)
            except ValueError:
                raise ConfigError(f"config option {item!r}: {kind.__name__} is needed") from None
            if key in allowed and options[key] not in allowed[key]:
                valid = ", ".join(map(str, allowed[key]))
                raise ConfigError(f"config option {item!r}: not one of {valid}")
    return ConfigDict(options)


def shrink(
    config: ConfigDict,
    shape: Sequence[int] = (),
    num_classes: int = 0,
    **backbone: Any,
) -> ConfigDict:
    """`:runlocal`: the same program in seconds on a laptop, on noise in place of data on disk.

    Args:
      config: changed in place.
      shape, num_classes: of the sets that are not embedded (tfds, files); each is replaced by a
        `stand_in` of the same shape, type and number of classes.
      **backbone: fields that make the backbone small.

    Raises:
      ValueError: a set has to be replaced, but `shape` or `num_classes` is missing.
    """
    config.steps = 4
    config.batch_size = min(config.batch_size, 8)
    config.evaluation.batch_size = 32
    config.evaluation.every = min(config.evaluation.every, 2)
    config.logging.every = 1
    config.checkpoint.every = 2
    config.inference.size = min(config.inference.size, 2)
    if "size" in config.ensemble:
        config.ensemble.size = min(config.ensemble.size, 2)
    if config.inference.get("collect"):
        if "size" in config.inference.collect:
            config.inference.collect.size = 1
        if "cycles" in config.inference.collect:
            config.inference.collect.cycles = 1
    config.pretrained = dict()  # the file fits the full size
    config.stages = tuple(_short_stage(stage) for stage in config.stages)
    schedule = config.optimiser.get("schedule", {})
    if "warmup_steps" in schedule:
        schedule.warmup_steps = min(schedule.warmup_steps, 1)
    config.backbone.update(backbone)
    if "samples" in config.likelihood:
        config.likelihood.samples = min(config.likelihood.samples, 16)
    for evaluator in config.evaluators.values():
        if evaluator.name == "corruption":
            evaluator.severities = (5,)
        if evaluator.name == "uncertainty_map":
            evaluator.points = 9
    seeds: dict[str, int] = {}  # one seed per set, so that its splits agree wherever it is used
    embedded_set = needs_no_file(config.data.train.name)
    particles = config.data.get("particles") or {}
    sets = ConfigDict({str(i): spec for i, spec in enumerate(_field(particles, "sets") or ())})
    validation = _field(config.data, "validation")
    if (
        validation
        and not needs_no_file(validation.get("name", config.data.train.name))
        and "[" in validation.get("split", "")  # without slices it would be the training data
    ):
        validation.split = _split_for_validation(config)
    for section in (config.data, sets, *config.evaluators.values()):
        if not embedded_set:
            _without_slices(section)
        _stand_in(section, shape, num_classes, seeds)
    if sets:
        particles.sets = [spec.to_dict() for spec in sets.values()]
    if _field(particles, "name") == "per_class" and not embedded_set:
        config.data.particles = "shuffled"  # a stand-in may have no example of a class
    return config


def _split_for_validation(config: ConfigDict) -> str:
    """A split of a stand-in that evaluators do not read."""
    plain = config.to_dict()
    fields = [
        plain["data"].get("test"),
        *(v for e in plain["evaluators"].values() for v in e.values()),
    ]
    read = {spec.get("split") for field in fields for _, spec in specs(field)}
    return "test" if "validation" in read else "validation"


def _field(section: ConfigDict | str, name: str) -> Any:
    return section.get(name) if isinstance(section, Mapping | ConfigDict) else None


def _without_slices(section: ConfigDict) -> None:
    """Replaces slices of the training data's set by whole splits, as the stand-in is smaller."""
    for spec in section.values():
        if isinstance(spec, ConfigDict) and "name" not in spec:
            if "split" in spec:
                spec.split = re.sub(r"\[.*?\]", "", spec.split)
            _without_slices(spec)


def _short_stage(stage: Mapping[str, Any]) -> dict[str, Any]:
    """A stage with few steps and small sizes."""
    most = dict(steps=4, every=2, size=2, cycles=2, samples=2)
    return {**stage, **{k: min(stage[k], v) for k, v in most.items() if k in stage}}


_OF_ANY_SET = (
    "split",
    "classes",
    "mean",
    "std",
    "standardise",
    "statistics",
    "label_noise",
    "batch_size",
    "augment",
    "labels",
)


def _stand_in(
    section: ConfigDict,
    shape: Sequence[int],
    num_classes: int,
    seeds: dict[str, int],
    **fields: Any,
) -> None:
    """Replaces the sets in a section and its subsections, unless they are embedded."""
    for key, spec in section.items():
        if key == "particles" or not isinstance(spec, ConfigDict):
            continue
        if "name" not in spec:
            _stand_in(spec, shape, num_classes, seeds, **fields)
        elif spec.name in MADE_OF_OTHERS:
            if "split" in spec:
                spec.split = re.sub(r"\[.*?\]", "", spec.split)
            _stand_in(spec, shape, num_classes, seeds, size=512)  # images of every class
        elif not needs_no_file(spec.name):
            if not shape or not num_classes:
                raise ValueError(f"shrink: {spec.name!r} needs a stand-in's shape and num_classes")
            seed = seeds.setdefault(spec.name, len(seeds))
            common = {field: spec[field] for field in _OF_ANY_SET if field in spec}
            for field in {"split", "statistics"} & set(common):
                common[field] = re.sub(
                    r"\[.*?\]", "", common[field]
                )  # the stand-in is smaller than the slices
            common |= dict(shape=tuple(shape), num_classes=num_classes, seed=seed, **fields)
            section[key] = dict(name="stand_in", **common)
