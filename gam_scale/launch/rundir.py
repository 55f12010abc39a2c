"""``python -m gam_scale.launch.rundir --config FILE [--set ...]`` prints the run's directory.

For job scripts, which keep a job's code and logs there. What a script is given for its ranks is
checked here, config and all, so that a mistake ends a job before they start.
"""

from gam_scale import cli
from gam_scale.config import load_config
from gam_scale.errors import UserError, one_line
from gam_scale.launch.words import in_one_line


def main() -> None:
    """Parse, read the config, print."""
    parser = cli.Parser(description=__doc__.splitlines()[0], add_help=False)
    parser.add_argument(
        "--config", required=True, action="append", metavar="FILE", help="the run's JSON config"
    )
    cli.add_overrides(parser)
    parser.add_argument("--fresh", action="store_true", help="of tools/pretrain.py")
    args, unknown = parser.parse_known_args()
    if unknown or len(args.config) > 1:
        found = unknown[0] if unknown else f"--config {args.config[1]}"
        raise UserError(
            f"GAM_ARGS has {one_line(found)}; expected --set KEY=VALUE and --fresh, and the config "
            "in CONFIG"
        )
    config = load_config(in_one_line(args.config[0], "CONFIG"), args.overrides)
    print(in_one_line(config.log.run_dir, "log.run_dir"))


if __name__ == "__main__":
    cli.run(main)
