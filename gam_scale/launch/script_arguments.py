"""Check the arguments that a job script passes to its ranks, before they start.

``python -m gam_scale.launch.script_arguments --config FILE [--set ...]`` prints the run directory,
in which the script keeps its code and logs. A mistake in the arguments or in the config ends the
job at this point.
"""

from gam_scale import cli
from gam_scale.config import load_config
from gam_scale.errors import UserError, one_line
from gam_scale.launch.words import in_one_line


def main() -> None:
    """Check the arguments, read the config and print the run directory."""
    parser = cli.Parser(description=__doc__.splitlines()[0], add_help=False)
    parser.add_argument(
        "--config", required=True, action="append", metavar="FILE", help="the run's JSON config"
    )
    cli.add_overrides(parser)
    parser.add_argument("--fresh", action="store_true", help="as in tools/pretrain.py")
    args, unknown = parser.parse_known_args()
    if unknown or len(args.config) > 1:
        wrong = unknown[0] if unknown else f"--config {args.config[1]}"
        raise UserError(
            f"GAM_ARGS has {one_line(wrong)}; expected --set KEY=VALUE and --fresh, and the config "
            "in CONFIG"
        )
    config = load_config(in_one_line(args.config[0], "CONFIG"), args.overrides)
    print(in_one_line(config.log.run_dir, "log.run_dir"))


if __name__ == "__main__":
    cli.run(main)
