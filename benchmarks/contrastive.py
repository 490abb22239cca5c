"""A step of contrastive training against a supervised step of the same network, per FLOP, on CPU.

    python -m benchmarks.contrastive [--batch 64] [--side 28] [--rounds 7] [--save]

ResNet-20 of width 16 on images of one channel, SGD with momentum; projector 256-256-128. Sides,
taking turns:

    supervised      the likelihood of one view
    InfoNCE         two views that are in the batch already, and the online probe
    InfoNCE, BYOL   the same with BYOL's views made on the device
    equivariant     InfoNCE, and the turn of a further view in all four, of half the side

FLOPs are those of products and convolutions, counted in the traced program. The ratio is that of
times per FLOP: above 1 the contrastive step makes better use of the machine.

Then BYOL's first view of three channels alone, in images per second: ours, compiled for this
machine, against a loop of Pillow's operations over images, as data loaders run them, both on all
cores that this process has (Pillow's loop has one thread; a loader would have one for each core).
"""

import argparse
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from benchmarks import timing
from benchmarks.timing import block, show
from experiments.planning.operations import count
from uncertainty import build, views

SIDES = ("supervised", "InfoNCE", "InfoNCE, BYOL", "equivariant")
REFERENCE = "supervised"
PROJECTOR = dict(name="projector.Projector", widths=(256, 256, 128))
PREDICTOR = dict(name="projector.Projector", widths=(256, 128), norm=dict(name="norm.LayerNorm"))


def objective(side: str, pixels: int) -> dict[str, Any]:
    if side == REFERENCE:
        return dict(name="likelihood")
    given = dict(name="contrastive", views=(), entries=("x", "x2"), projector=PROJECTOR)
    if side == "InfoNCE":
        return given
    if side == "InfoNCE, BYOL":
        return dict(name="contrastive", projector=PROJECTOR)
    half = [dict(name="crop", size=pixels // 2, scale=(0.2, 1.0))]
    return given | dict(equivariance=0.4, predicted=half, predictor=PREDICTOR)


def step(side: str, batch: dict[str, Any]) -> tuple[Callable, Any]:
    """The jitted update of one network, and its state."""
    config = dict(
        backbone=dict(name="resnet.ResNet", depth=20),
        ensemble="single",
        head=dict(name="dense.Dense", outputs=10),
        likelihood="softmax",
        objective=objective(side, batch["x"].shape[1]),
        inference=dict(name="particles", size=1),
        optimiser=dict(name="sgd", momentum=0.9, learning_rate=0.01),
        steps=100,
    )
    model = build.model(config)._replace(pixels=(np.float32([0.3]), np.float32([0.3])))
    made = build.inference(config, model)
    return jax.jit(made.update), made.init(jax.random.key(0), batch["x"][:1])


def by_pillow(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """BYOL's first view of uint8 [B, H, W, 3], one image after the other."""
    B, H, W, _ = pixels.shape
    made = np.empty((B, H, W, 3), np.float32)
    for i, array in enumerate(pixels):
        area, aspect = H * W * rng.uniform(0.08, 1), np.exp(rng.uniform(*np.log([3 / 4, 4 / 3])))
        w = min(W, max(1, round(np.sqrt(area * aspect))))
        h = min(H, max(1, round(np.sqrt(area / aspect))))
        left, top = rng.integers(W - w + 1), rng.integers(H - h + 1)
        box = (left, top, left + w, top + h)
        image = Image.fromarray(array).resize((W, H), Image.Resampling.BICUBIC, box=box)
        if rng.random() < 0.5:
            image = ImageOps.mirror(image)
        if rng.random() < 0.8:
            for change in rng.permutation(4):
                image = _changed(image, change, rng)
        if rng.random() < 0.2:
            image = image.convert("L").convert("RGB")
        sigma = rng.uniform(0.1, 2) * min(H, W) / views.SIDE
        made[i] = np.asarray(image.filter(ImageFilter.GaussianBlur(sigma)), np.float32) / 255
    return made


def _changed(image: Image.Image, change: int, rng: np.random.Generator) -> Image.Image:
    if change == 3:
        h, s, v = image.convert("HSV").split()
        turned = np.asarray(h, np.uint8) + np.uint8(rng.integers(-25, 26) % 256)
        return Image.merge("HSV", (Image.fromarray(turned), s, v)).convert("RGB")
    kind = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)[change]
    strength = (0.4, 0.4, 0.2)[change]
    return kind(image).enhance(rng.uniform(1 - strength, 1 + strength))


def steps(arguments: argparse.Namespace) -> dict[str, Any]:
    """Times and FLOPs of a step of each side."""
    rng = np.random.default_rng(0)
    shape = (arguments.batch, arguments.side, arguments.side, 1)
    batch = {name: rng.normal(size=shape).astype(np.float32) for name in ("x", "x2")}
    batch["y"] = rng.integers(10, size=arguments.batch).astype(np.int32)
    sides, flops = {}, {}
    for side in SIDES:
        update, state = step(side, batch)
        flops[side] = count(jax.make_jaxpr(update)(state, batch).jaxpr).flops
        jax.block_until_ready(update(state, batch))
        sides[side] = block(functools.partial(update, state, batch))
    seconds = timing.take_turns(sides, arguments.rounds)
    per_flop = {
        side: {clock: value / flops[side] for clock, value in values.items()}
        for side, values in seconds.items()
    }
    return dict(
        job=f"ResNet-20, {arguments.side} x {arguments.side}, batch {arguments.batch}",
        seconds=seconds,
        ratios=timing.over(per_flop, REFERENCE),
        targets=dict.fromkeys(SIDES[1:], 1.1),
        flops={side: value / flops[REFERENCE] for side, value in flops.items()},
    )


def augmentation(side: int, rounds: int, batch: int = 64) -> dict[str, Any]:
    """Images per second of BYOL's first view, by each."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(256, size=(batch, side, side, 3)).astype(np.uint8)
    x = pixels.astype(np.float32) / 255
    run = jax.jit(functools.partial(views.apply, views.byol(side, side)[0]))
    jax.block_until_ready(run(x, jax.random.key(0)))
    seconds = timing.take_turns(
        {
            "ours": block(lambda: run(x, jax.random.key(1)), batch),
            "Pillow": block(lambda: by_pillow(pixels, rng), batch),
        },
        rounds,
    )
    return dict(side=side, seconds=seconds, ratios=timing.over(seconds, "ours"))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, value in dict(batch=64, side=28, rounds=7).items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/*.json")
    arguments = parser.parse_args()
    record = steps(arguments) | dict(
        views=[augmentation(side, arguments.rounds) for side in (28, 224)],
        rounds=arguments.rounds,
        **timing.where(),
    )
    show(record)
    print("FLOPs over a supervised step:", {k: round(v, 2) for k, v in record["flops"].items()})
    for each in record["views"]:
        ours, theirs = (1 / each["seconds"][name]["wall"] for name in ("ours", "Pillow"))
        print(f"views of {each['side']}: {ours:,.0f} images/s, Pillow {theirs:,.0f}")
    if arguments.save:
        print(f"written: {timing.save(f'contrastive_{arguments.batch}', record)}")


if __name__ == "__main__":
    main()
