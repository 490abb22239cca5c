"""Made-up runs, and LaTeX read back."""

import json
import re

import numpy as np

from experiments.runtime import keys


def write_run(directory, seed=0, members=3, regression=False, learning_rate=1e-3, out="far"):
    """A workdir with all that train and evaluate write, made up."""
    rng = np.random.default_rng([seed, members])
    folder = directory / "evaluation" / "test"
    folder.mkdir(parents=True)
    config = {"seed": seed, "optimiser": {"learning_rate": learning_rate}, "note": "<b>&"}
    (directory / "config.json").write_text(json.dumps(config))
    B = 60
    if regression:
        x = rng.uniform(-1, 1, (B, 1))
        mean = x[None] + rng.normal(0, 0.1, (members, 1, 1))
        scores = {"test/x": x, "test/y": x + 0.1, "test/mean": mean}
        scores["test/variance"] = np.full_like(mean, 0.01)
        grid = np.linspace(-2, 2, 30)[:, None]
        scores |= {"grid/x": grid, "grid/mean": np.repeat(grid[None], members, 0)}
        scores["grid/variance"] = 0.01 + scores["grid/mean"] ** 2
        metrics = {"regression/nll": -0.5 + rng.normal(), "regression/rmse": 0.1}
    else:
        p = rng.dirichlet(np.ones(4), B)
        label = rng.integers(0, 4, B)
        entropy = -(p * np.log(p)).sum(1)
        scores = {"test/label": label, "test/prediction": p.argmax(1), "test/confidence": p.max(1)}
        scores["test/entropy"] = entropy
        scores |= {"map/axes": np.tile(np.linspace(-1, 1, 5), (2, 1)), "map/y": label}
        scores |= {"map/x": rng.normal(size=(B, 2)), "map/p": rng.dirichlet(np.ones(4), (5, 5))}
        scores["map/entropy"] = rng.uniform(size=(5, 5))
        far = keys.join("ood", out, "")
        scores |= {f"{far}entropy": entropy + 0.1, f"{far}confidence": p.max(1)}
        for name in ("test", far[:-1]) if members > 1 else ():
            scores[f"{name}/mutual_information"] = rng.uniform(size=B)
        metrics = {"classification/accuracy": float((p.argmax(1) == label).mean())}
        metrics |= {"classification/nll": 1.2 + rng.normal(), "calibration/ece": 0.1}
        metrics |= {f"{far}auroc_entropy": 0.7, f"{far}auroc_max_probability": 0.6}
        metrics |= {f"corruption/blur/{s}/nll": 1.0 + s for s in (1, 2)}
        metrics |= {"corruption/nll": 2.5, "cost/parameters": 1000, "cost/train_seconds": "NaN"}
    np.savez(folder / "scores.npz", **scores)
    (folder / "metrics.json").write_text(json.dumps(metrics))
    lines = [{"step": s, "loss": 2.0 / s, "ensemble_loss": 1.8 / s} for s in range(1, 6)]
    for line in lines if members > 1 else ():
        line |= {f"loss/{m}": (2.0 + m) / line["step"] for m in range(members)}
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (directory / "metrics.jsonl").write_text(text + '{"step": 6, "lo')  # killed while writing
    return directory


WORDS = dict(
    backslash="\\", asciitilde="~", asciicircum="^", less="<", greater=">", bar="|", asciigrave="`"
)
SIGNS = dict(uparrow="↑", downarrow="↓", pm="±", times="×", rightarrow="→")
LATEX = re.compile(
    r"\$\\(?P<sign>\w+)\$|\\text(?P<word>\w+)\{\}|\\(?P<escaped>[&%$#_{}])|\{(?P<kept>[\[\]*]?)\}"
    r"|(?P<pm> \\pm )|\$"
)


def plain(latex):
    """LaTeX text back to plain text; superscripts dropped."""
    latex = re.sub(r"\\textsuperscript\{[\d,]*\}", "", latex)
    latex = re.sub(r"\\(?:emph|mathbf)\{((?:[^{}])*)\}", r"\1", latex)

    def character(found):
        kind, text = found.lastgroup, found[found.lastgroup] if found.lastgroup else ""
        return (
            SIGNS[text]
            if kind == "sign"
            else WORDS[text]
            if kind == "word"
            else (" ± " if kind == "pm" else text)
        )

    return LATEX.sub(character, latex)
