"""``python -m gam_scale.train.in_turn CONFIG...`` trains runs one after another in one process.

It is for the runs of a sweep, which are so short that starting Python takes as long as training.
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
    """Train each config to its end; return False as soon as a signal stops one.

    Args:
        configs: paths of JSON files.
        overrides: ``section.key=value`` for all of them.
        fresh: start each run over instead of resuming it.

    Raises:
        UserError: a run cannot work; the runs after it have not been started.
    """
    stop = StopRequest()  # for all runs: a signal may come between two of them
    try:
        return all(pretrain(load_config(config, overrides), fresh=fresh) for config in configs)
    finally:
        stop.close()


if __name__ == "__main__":
    cli.run(lambda: 0 if train_in_turn(sys.argv[1:]) else 1)
