"""The main experiment on data of scikit-learn: one network against a deep ensemble of ten.

make quickstart        (python -m experiments.quickstart)
"""

import argparse
import logging
import sys
import time
from collections.abc import Sequence

from experiments.runtime import storage
from experiments.runtime.progress import CONSOLE, setup_logging
from experiments.runtime.termination import Interrupted, status
from experiments.tables.cells import Cells
from experiments.tables.run import reproduce

WORKDIR = "runs/quickstart"

NEXT = """
Report: {report}
Finished in {seconds:.0f} s. Finished cells are not run again.

Next, after `source .venv/bin/activate`:
  python -m experiments.train --config configs/digits/mlp.py:size=5 --workdir runs/five \\
      --config.optimiser.learning_rate=3e-4
  python -m experiments.evaluate --workdir runs/five --data digits:validation
  python -m experiments.report runs/five --output five.html
  python -m experiments.reproduce small_images    # LeNet5 on Fashion-MNIST, see docs/results
"""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m experiments.quickstart", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    text = "where it goes; gs:// and s3:// too (default: %(default)s)"
    parser.add_argument("--workdir", default=WORKDIR, help=text)
    args = parser.parse_args(argv)
    setup_logging(logging.WARNING)
    began = time.monotonic()
    try:
        workdir = storage.path(args.workdir)
        cells = Cells("digits", workdir / "results", workdir, {})
        outcome = reproduce(cells)
        from experiments.tables.render import render

        report, problems = render(cells, outcome)
    except (Interrupted, KeyboardInterrupt) as message:
        CONSOLE.print(f"{str(message) or 'interrupted'}. The same command resumes.")
        return getattr(message, "code", status("SIGINT"))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for text in (*outcome.failures, *problems):
        print(f"error: {text}", file=sys.stderr)
    CONSOLE.print(
        NEXT.format(report=report, seconds=time.monotonic() - began),
        highlight=False,
        soft_wrap=True,
    )
    return 1 if outcome.failures or problems else 0


if __name__ == "__main__":
    sys.exit(main())
