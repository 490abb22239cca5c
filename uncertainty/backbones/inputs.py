"""Checks of the inputs of a backbone."""

import jax


def check_images(x: jax.Array, smallest: int = 1) -> None:
    """Raises ValueError unless x is [M or 1, B, H, W, C] with H, W >= `smallest`."""
    if x.ndim != 5:
        raise ValueError(
            f"x: shape {x.shape} has {x.ndim} axes; allowed [M or 1, B, H, W, C], such as x[None] "
            "for images [B, H, W, C]"
        )
    if min(x.shape[2:4]) < smallest:
        raise ValueError(
            f"x: images of {x.shape[2]} x {x.shape[3]}; allowed at least {smallest} x {smallest}"
        )
