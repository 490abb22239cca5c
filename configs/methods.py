"""Changes a config from a deterministic network to HET, SNGP or HetSNGP."""

from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

METHODS = ("deterministic", "het", "sngp", "hetsngp")


def set_method(
    config: ConfigDict,
    method: str,
    *,
    sngp: Mapping[str, Any],
    het: Mapping[str, Any],
    bound: float | None,
    layers: Sequence[str] = ("conv",),
) -> None:
    """Turns a config with a dense head into one for `method`, one of METHODS.

    Args:
      config: changed in place.
      method: 'deterministic' changes nothing.
      sngp: fields of `sngp.Sngp`.
      het: fields of `heteroscedastic.Heteroscedastic`.
      bound: of the spectral norm of the backbone's `layers` with a GP; None for plain layers.
      layers: which of the backbone's fields, 'conv' and 'dense', are bounded.
    """
    outputs = config.head.outputs
    if method in ("het", "hetsngp"):
        config.head = dict(name="heteroscedastic.Heteroscedastic", outputs=outputs, **het)
    if method == "sngp":
        config.head = dict(name="sngp.Sngp", outputs=outputs, **sngp)
    if method == "hetsngp":
        config.head.mean = dict(name="sngp.Sngp", **sngp)
    if method in ("sngp", "hetsngp"):
        config.stages = (dict(name="laplace"),)
        for layer in layers if bound else ():
            config.backbone[layer] = dict(name=f"spectral_norm.{layer.title()}", bound=bound)
