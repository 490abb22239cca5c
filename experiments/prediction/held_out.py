"""Whether examples are held out from the training data of the runs that predict as one."""

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from experiments.data import labels
from experiments.data.derived import key_of
from experiments.data.overlap import require_apart
from experiments.data.source import Source, load

if TYPE_CHECKING:
    from experiments.prediction.trained import Trained

logger = logging.getLogger(__name__)


def require_held_out(field: str, source: Source, runs: Sequence["Trained"]) -> None:
    """Refuses examples that are, or lie within, the training data of a further one of several runs.

    Those of the first run are compared before it is trained. Training data that cannot be read here
    are logged, as evaluation needs none.

    Args:
      field: of the held-out examples, for the message.
      source: the held-out examples.
      runs: which predict as one; training data that differ from the first run's are read.

    Raises:
      ValueError: more than half of the examples are training examples.
    """
    experiments = {key_of(run.experiment.config["data"]["train"]): run.experiment for run in runs}
    for experiment in [*experiments.values()][1:]:
        train = experiment.source
        if not len(train):  # its record alone
            spec = experiment.config["data"]["train"]
            try:
                train = load(spec, "data.train", like=train, labels=labels.UNUSED)
            except (OSError, ValueError, ImportError) as error:
                logger.warning(
                    "%s: whether %s has training examples is not known: %s",
                    field,
                    source.title,
                    error,
                )
                continue
        require_apart(field, source, train, "the training data")
