"""``python -m gam_scale.launch.rundir --config FILE [--set ...]`` prints the run's directory.

For job scripts, which keep a job's code and logs there. Other options of tools/pretrain.py are
ignored; the config is checked, so that a mistake ends a job before its ranks start.
"""

from gam_scale import cli
from gam_scale.config import load_config


def main() -> None:
    """Parse, read the config, print."""
    parser = cli.Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True, metavar="FILE", help="the run's JSON config")
    cli.add_overrides(parser)
    args, _ = parser.parse_known_args()
    print(load_config(args.config, args.overrides).log.run_dir)


if __name__ == "__main__":
    cli.run(main)
