"""``python -m gam_scale.train.in_turn CONFIG...`` trains runs one after another in one process.

For runs so short that starting Python takes as long as training: those of a sweep.
"""

import sys
from collections.abc import Sequence

from gam_scale import cli
from gam_scale.config import load_config
from gam_scale.train.pretrain import pretrain
from gam_scale.train.signals import StopRequest


def train_in_turn(
    configs: Sequence[str], overrides: Sequence[str] = (), *, fresh: bool = False
) -> bool:
    """Train each to its end; false once a signal stopped one.

    Args:
        configs: paths of JSON files.
        overrides: ``section.key=value``, for each of them.
        fresh: start over rather than resume what is there.

    Raises:
        UserError: a run cannot work; those after it have not been started.
    """
    stop = StopRequest()  # of all of them: one may come between two runs
    try:
        return all(pretrain(load_config(config, overrides), fresh=fresh) for config in configs)
    finally:
        stop.close()


if __name__ == "__main__":
    cli.run(lambda: 0 if train_in_turn(sys.argv[1:]) else 1)
