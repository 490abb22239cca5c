"""Compiles one program in a process of its own, since a failed check of a compiler ends it.

    python -m experiments.planning.child REQUEST.json RESULT.json

The result is written only if the compiler returns.
"""

import json
import os
import pathlib
import sys
import threading
import time
from typing import Any

from experiments.data.derived import derived
from experiments.planning import slices

CONFIG = "config"  # why there is no program: see `programs` and `requests` too


def answer(request: dict[str, Any], text: pathlib.Path | None = None) -> dict[str, Any]:
    """The result of a request: a report, or the reason why there is none."""
    from experiments.experiment.build import setup
    from experiments.planning import paper, programs
    from uncertainty.build import ConfigError

    try:
        topology = slices.parse(request["topology"])
        config = derived({**request["config"], "pretrained": {}})
        given = paper.Shape(*request["data"]) if request["data"] else None
        noted = paper.described(config, given)
        experiment = setup(config, noted, evaluated=False, devices=slices.devices(topology))
        shared = programs.described(experiment)
        return {**shared, **programs.report(experiment, request["program"], text)}
    except (ConfigError, ValueError) as error:
        return dict(failed=CONFIG, reason=str(error))


def end_with(parent: int) -> None:
    """Ends this process once its parent has ended, so that no compilation is left behind."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def main(argv: list[str]) -> None:
    threading.Thread(target=end_with, args=(os.getppid(),), daemon=True).start()
    request, result = map(pathlib.Path, argv[1:])
    asked = json.loads(request.read_text())
    text = result.with_suffix(".hlo.gz") if asked.get("text") else None
    made = json.dumps(answer(asked, text))
    result.with_suffix(".part").write_text(made)
    result.with_suffix(".part").replace(result)


if __name__ == "__main__":
    main(sys.argv)
