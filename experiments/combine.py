"""Combines members of several runs or files, chosen by their predictions of validation data.

    python -m experiments.combine eq=runs/eq inv=runs/inv --out runs/both
    python -m experiments.combine runs/a runs/b runs/c --methods greedy --size 3 --by accuracy
    python -m experiments.combine eq=eq.npz inv=inv.npz --methods greedy,winners,gate --counts 2,4

Inputs are workdirs of runs, whose newest checkpoints predict, or files of predictions with a test
set and a set `validation` (docs/predictions.md). LABEL is what kind of member it has: inputs of one
label are of one kind. Members are chosen on the validation set and measured on the test set; those
whose predictions are not finite are left out, by name.

`--out` gets `combination.json`, and the predictions of all members (`all.npz`) and of each
combination, of the test set and of all other sets but the validation set, for `experiments.score`.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from typing import Any

SETTINGS = {  # flag -> the field of methods that it sets
    "size": "size",
    "by": "by",
    "replacement": "replacement",
    "l2": "l2",
    "constant": "constant",
}


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m experiments.combine",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = made.add_argument
    add("inputs", nargs="+", metavar="[LABEL=]PATH", help="workdirs or files of predictions")
    add("--out", metavar="FOLDER", help="write combination.json and predictions there")
    add("--methods", default="greedy,winners", metavar="NAME,...",
        help="of uncertainty/combining: greedy, winners, gate; default: %(default)s")  # fmt: skip
    add("--size", type=int, help="members that greedy chooses; default: 5, or all if fewer")
    add("--by", choices=("nll", "accuracy"), help="on the validation set; default: nll for greedy, "
        "accuracy for winners")  # fmt: skip
    add("--replacement", action="store_true", default=None,
        help="greedy may choose a member again")  # fmt: skip
    add("--l2", type=float, help="of the gate; default: 0.001")
    add("--constant", action="store_true", default=None,
        help="the gate's weights are the same for all inputs")  # fmt: skip
    add("--counts", default="2", metavar="N,...",
        help="compare kinds at these numbers of members; default: %(default)s")  # fmt: skip
    add("--tolerance", type=float, default=0.01, metavar="E",
        help="rows that sum to 1 within E are divided by their sum; default: "
        "%(default)s")  # fmt: skip
    add("--bins", type=int, default=15, help="of calibration errors; default: %(default)s")
    return made


def specs_of(options: argparse.Namespace, members: int) -> dict[str, dict[str, Any]]:
    """label -> spec of each method, with the fields that flags set.

    Args:
      options: of the command line.
      members: of the pool.

    Raises:
      ValueError: an unknown method, or a flag that none of them has.
    """
    from experiments.evaluators.combination import labelled
    from uncertainty.specs import resolve, signature

    given = {
        field: value
        for flag, field in SETTINGS.items()
        if (value := getattr(options, flag)) is not None
    }
    specs: list[dict[str, Any]] = []
    used: set[str] = set()
    for name in filter(None, (word.strip() for word in options.methods.split(","))):
        try:
            accepted = signature(resolve("combining", name, "--methods"))[0]
        except ValueError as error:
            raise ValueError(str(error).replace("--methods.name", "--methods")) from error
        fields = {key: value for key, value in given.items() if key in accepted}
        used |= set(fields)
        if "size" in accepted and not options.replacement:
            fields.setdefault("size", min(5, members))
        specs.append(dict(fields, name=name))
    if unused := sorted(set(given) - used):
        raise ValueError(f"--{unused[0]}: none of the methods {options.methods!r} has it")
    try:
        return labelled(specs, "--methods")
    except ValueError as error:
        named = "" if "--methods" in str(error) else "--methods: "
        raise ValueError(f"{named}{error}") from error


def counts_of(text: str) -> list[int]:
    """'2,4' as [2, 4].

    Raises:
      ValueError: another form.
    """
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not all(word.isdecimal() and int(word) >= 1 for word in words):
        raise ValueError(f"--counts: {text!r}; whole numbers from 1, such as 2,4")
    return [int(word) for word in words]


def run(options: argparse.Namespace, command: str) -> None:
    """Combines, prints, and writes.

    Raises:
      ValueError: wrong values in an input or a flag; the message names both.
    """
    from experiments.combining import output
    from experiments.combining.measure import measure
    from experiments.combining.pool import pool
    from experiments.evaluators import kinds
    from experiments.runtime import storage
    from experiments.score import labelled
    from experiments.scoring.parts import Options

    reading = Options(tolerance=options.tolerance)
    reading.check()
    if options.bins < 1:
        raise ValueError(f"--bins: {options.bins}; a whole number from 1 is expected")
    counts, given = counts_of(options.counts), labelled(options.inputs)
    specs_of(options, 1_000)  # wrong flags, before anything is predicted
    kinds.check([label.replace("/", " ") for label, _ in given], counts)
    folder = None
    if options.out:
        folder = storage.path(options.out)
        if folder.is_file():
            raise ValueError(f"--out: {folder} is a file; a folder is expected")
        storage.require_writable(folder)
    members = pool([(label.replace("/", " "), path) for label, path in given], reading)
    specs = specs_of(options, len(members.members))
    found = measure(members, specs, counts, options.bins)
    output.show(members, found)
    if folder is not None:
        paths = output.write(folder, members, found, command)
        print("\n".join(map(str, paths)))


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    words = sys.argv[1:] if arguments is None else arguments
    command = shlex.join(["python", "-m", "experiments.combine", *words])
    try:
        run(options, command)
    except (ValueError, OSError, ImportError, ArithmeticError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
