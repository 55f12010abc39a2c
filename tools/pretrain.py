#!/usr/bin/env python3
"""Train a model: python tools/pretrain.py --config FILE.json [--set section.key=value ...]

Start it with deepspeed, torchrun, srun or plain python; the same command again resumes the run.
"""

import argparse

from gam_scale import cli
from gam_scale.errors import UserError
from gam_scale.train.signals import StopRequest


def print_settings() -> None:
    """Print every setting of a run, then those of each kind of layer and of its parts."""
    from gam_scale.config import RunConfig
    from gam_scale.model.parts import FEED_FORWARDS, MIXERS, NORMS
    from gam_scale.strict import describe

    rows = describe(RunConfig)
    for registry in (MIXERS, FEED_FORWARDS, NORMS):
        for kind in registry:
            own = describe(registry[kind])
            noun = f"{registry.noun} {kind}"
            rows += [(f"{noun}: {key}", form, default, doc) for key, form, default, doc in own]
            if not own:
                rows.append((noun, "", "", "no settings"))
    for key, type_name, default, doc in rows:
        said = f" ({type_name}, default {default})" if type_name else ""
        print(f"{key}{said}\n    {doc}")


def main() -> int:
    """Parse the command line, read the config and train; return the exit status."""
    parser = cli.Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", metavar="FILE", help="the run's JSON config")
    cli.add_overrides(parser)
    parser.add_argument("--fresh", action="store_true", help="start over: remove the earlier run")
    parser.add_argument(
        "--anneal-now",
        type=cli.count(1),
        default=0,
        metavar="STEPS",
        help="decay the learning rate from the newest checkpoint (or that of checkpoint.branch_of) "
        "on, linearly over STEPS steps, and end the run; for a run that a job is training: echo "
        "STEPS > RUN_DIR/anneal-now",
    )
    parser.add_argument("--help-config", action="store_true", help="list every setting and stop")
    parser.add_argument(
        "--stopped-status",
        type=cli.count(0, 255),
        default=0,
        metavar="N",
        help="exit status if a signal stops the run before its end (default: 0)",
    )
    # The deepspeed launcher passes this; ranks come from the environment.
    parser.add_argument("--local_rank", type=cli.count(-1), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.help_config:
        print_settings()
        return 0
    if args.config is None:
        raise UserError("--config is missing; expected a JSON file such as configs/quickstart.json")
    if args.fresh and args.anneal_now:
        raise UserError("--anneal-now needs the run that --fresh removes; expected one of them")
    stop = StopRequest()  # also for the seconds in which torch and the engine are imported
    try:
        from gam_scale.config import load_config
        from gam_scale.train.pretrain import pretrain

        config = load_config(args.config, args.overrides)
        finished = pretrain(config, fresh=args.fresh, anneal=args.anneal_now)
    finally:
        stop.close()
    return 0 if finished else args.stopped_status


if __name__ == "__main__":
    cli.run(main)
