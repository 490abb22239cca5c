"""Scores predictions in files, of whatever origin, as runs are evaluated.

    python -m experiments.score predictions.npz
    python -m experiments.score Single=single.npz Ensemble=ensemble.npz --out report
    python -m experiments.score model.csv --posthoc temperature
    python -m experiments.score probabilities.npy --kind probs --labels labels.npy

Files are .npz, .npy, .csv or .parquet; docs/predictions.md describes what they hold. Files on the
same labels are compared by paired bootstrap intervals; files of one LABEL are seeds of one method.
"""

import argparse
import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import Any


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m experiments.score",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = made.add_argument
    add("files", nargs="+", metavar="[LABEL=]FILE", help="predictions")
    add("--out", metavar="FOLDER", help="write report.html, scores.json and tables as CSV there")
    add("--title", default="Scores", help="of the report; default: %(default)s")
    add("--baseline", metavar="LABEL", help="that others are compared with; default: the first")
    reading = made.add_argument_group("reading")
    add = reading.add_argument
    add("--kind", choices=("log_p", "probs", "logits"), help="what the array of a .npy is")
    add("--labels", metavar="FILE", help="y, and group, of files that have none")
    add("--rename", metavar="OLD=NEW,...", default="", help="arrays or columns of other names")
    add("--independent", action="store_true", help="classes are independent, as with a sigmoid")
    add("--tolerance", type=float, default=0.01, metavar="E",
        help="rows that sum to 1 within E are divided by their sum, which is reported; default: "
        "%(default)s")  # fmt: skip
    add("--floor", type=float, default=0.0, metavar="E",
        help="raise smaller probabilities to E, which is reported; default: none")  # fmt: skip
    add("--bins", type=int, default=15, help="of calibration errors; default: %(default)s")
    methods = made.add_argument_group("post-hoc methods")
    add = methods.add_argument
    add("--posthoc", default="", metavar="NAME,...",
        help="methods of uncertainty/posthoc, each a further row: fitted to the mixture on the set "
        "`validation`; members:NAME fits each member; of regression: variance_scale")  # fmt: skip
    add("--conformal", default="", metavar="NAME,...",
        help="coverage and size of sets of uncertainty/conformal, also on corrupted sets: lac, "
        "aps, raps, saps of classes; split, scaled, cqr, predicted, box, directional of targets; "
        "group:NAME and class:NAME calibrate each of these alone")  # fmt: skip
    add("--alpha", type=float, default=0.1, help="share of labels that sets may miss; default: "
        "%(default)s")  # fmt: skip
    add("--cross-fit", action="store_true",
        help="without a validation set, calibrate each half of the test set by a fit on the "
        "other")  # fmt: skip
    intervals = made.add_argument_group("intervals")
    add = intervals.add_argument
    add("--resamples", type=int, default=1000, help="0 for no intervals; default: %(default)s")
    add("--seed", type=int, default=0, help="of resamples and halves; default: %(default)s")
    add("--level", type=float, default=0.95, help="default: %(default)s")
    add("--unclustered", action="store_true", help="resample examples, though there are groups")
    return made


def renamed(text: str) -> dict[str, str]:
    """'labels=y,p=probs' as a dict.

    Raises:
      ValueError: another form.
    """
    pairs = [item.strip().partition("=") for item in text.split(",") if item.strip()]
    for old, equals, new in pairs:
        if not (old and equals and new):
            raise ValueError(f"--rename: {text!r}; OLD=NEW,OLD=NEW is expected")
    return {old: new for old, _, new in pairs}


def labelled(given: Sequence[str]) -> list[tuple[str, str]]:
    """(label, path) of [LABEL=]PATH; labels made of paths are their names, told apart by folders.

    Raises:
      ValueError: a path that is given twice.
      FileNotFoundError: see `arguments.labelled`.
    """
    from experiments.runtime import arguments, storage  # late: with JAX
    from experiments.scoring.files import SUFFIXES

    pairs = [arguments.labelled(argument) for argument in given]
    paths = [storage.path(file).resolve() for _, file in pairs]
    for path, (_, file) in zip(paths, pairs, strict=True):
        if paths.count(path) > 1:
            raise ValueError(f"{file}: given twice")
    # of runs/NAME/evaluation/test/predictions.npz, NAME
    short = [
        [*p.parts[:-1], p.stem if p.name.lower().endswith(SUFFIXES) else p.name] for p in paths
    ]
    for of in short:
        if of[-1:] == ["predictions"] and "evaluation" in of[:-1]:
            del of[len(of) - 1 - of[::-1].index("evaluation") :]
    parts = [
        of if short.count(of) == 1 else [*path.parts] for of, path in zip(short, paths, strict=True)
    ]
    named = []
    for i, (label, _) in enumerate(pairs):
        others = [of for j, of in enumerate(parts) if j != i]
        n = 1
        while n < len(parts[i]) and any(of[-n:] == parts[i][-n:] for of in others):
            n += 1
        named.append(label or "/".join(parts[i][-n:]))
    return list(zip(named, (file for _, file in pairs), strict=True))


def check_labels(named: Sequence[tuple[str, str]], arguments: Sequence[str]) -> None:
    """Checks that files of one label, which are averaged as seeds of one method, were given it.

    Args:
      named: (label, file) of each argument, as `labelled` has them.
      arguments: [LABEL=]FILE.

    Raises:
      ValueError: a label that was made of a file is also another one's.
    """
    labels = [label for label, _ in named]
    for (label, file), argument in zip(named, arguments, strict=True):
        if labels.count(label) > 1 and not argument.startswith(f"{label}="):
            raise ValueError(
                f"{file}: without a label it is {label!r}, as another file is, and files of one "
                f"label are seeds of one method; LABEL={file} is needed"
            )


def labels_of(file: str, rename: Mapping[str, str]) -> dict[str, Any]:
    """`y` and `group` of a file of labels.

    Raises:
      ValueError: it has no `y`.
    """
    from experiments.scoring.files import read

    arrays = read(file, "y" if file.lower().endswith(".npy") else None, rename, labels=True).sets
    found = {name: value() for name, value in arrays.get("test", {}).items()}
    if "y" not in found:
        raise ValueError(f"--labels: {file} has no `y`, but {', '.join(found) or 'nothing'}")
    return {name: found[name] for name in ("y", "group") if name in found}


def run(options: argparse.Namespace, command: str) -> None:
    """Scores the files, prints, and writes.

    Raises:
      ValueError: wrong values in a file or an option; the message names both.
    """
    from experiments.runtime import storage
    from experiments.scoring import calibrate, compare, output, sets
    from experiments.scoring.files import read
    from experiments.scoring.measure import score
    from experiments.scoring.parts import Options
    from uncertainty.specs import nearest

    reading = Options(options.tolerance, options.floor, options.independent)
    reading.check()
    resampling = compare.Resampling(
        options.resamples, options.seed, options.level, not options.unclustered
    )
    resampling.check()
    if options.bins < 1:
        raise ValueError(f"--bins: {options.bins}; a whole number from 1 is expected")
    methods = calibrate.methods(options.posthoc)
    conformal = [name.strip() for name in options.conformal.split(",") if name.strip()]
    if conformal:
        sets.rules(conformal, options.alpha)
    given = labelled(options.files)
    check_labels(given, options.files)
    if options.baseline and options.baseline not in (names := [label for label, _ in given]):
        rows = [f"{name} + {m.label}" for name in names for m in methods]
        if options.baseline not in rows:
            valid = nearest(options.baseline, [*names, *rows])
            raise ValueError(f"--baseline: no row {options.baseline!r}; {valid}")
    folder = None
    if options.out:
        folder = storage.path(options.out)
        if folder.is_file():
            raise ValueError(f"--out: {folder} is a file; a folder is expected")
        storage.require_writable(folder)
    rename = renamed(options.rename)
    labels = labels_of(options.labels, rename) if options.labels else None
    files = [(label, read(file, options.kind, rename)) for label, file in given]
    scored = []
    for label, file in files:
        scored += score(
            file,
            label,
            reading,
            bins=options.bins,
            labels=labels,
            methods=methods,
            conformal=conformal,
            alpha=options.alpha,
            cross_fit=options.cross_fit,
            seed=options.seed,
        )
    comparison = compare.compare(scored, resampling, options.baseline)
    sentence = compare.described(resampling, scored)
    tasks = list(dict.fromkeys(one.task for one in scored))
    runs = output.runs_of(scored)
    studies = [output.study(runs, task, options.title, command) for task in tasks]
    output.show(scored, studies, comparison, sentence)
    if folder is not None:
        settings = {k: v for k, v in vars(options).items() if k not in ("files", "out")}
        paths = output.write(
            folder, scored, studies, comparison, sentence,
            title=options.title, command=command, settings=settings,
        )  # fmt: skip
        print("\n".join(map(str, paths)))


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    words = sys.argv[1:] if arguments is None else arguments
    command = shlex.join(["python", "-m", "experiments.score", *words])
    try:
        run(options, command)
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
