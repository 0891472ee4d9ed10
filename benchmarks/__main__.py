"""Run experiments, and make the tables and figures from what is stored.

python -m benchmarks run quick --seeds 0-4                  # a comparison in some minutes, which is not stored
python -m benchmarks run sharing_faces --seeds 0-4 --data_dir UTKFace
python -m benchmarks merge ../runs/benchmarks/results       # add the runs that another folder of results has
python -m benchmarks report                                 # TABLES.md, RESULTS.md, README.md, the figures
python -m benchmarks report --check                         # exit status 1 if they are not what the data give
"""

import argparse
import os
import sys

from .experiments import EXPERIMENTS


def seeds(text):
    """Argument type: `0-4`, or `0,2,5`."""
    try:
        first, _, last = text.partition("-")
        if last and int(first) <= int(last):
            return list(range(int(first), int(last) + 1))
        return [int(seed) for seed in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither like 0-4 nor like 0,2,5") from None


def make_parser():
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, help_text in (
        ("run", "train what is missing"),
        ("average", "measure the averaged predictions of every two networks of --keep_models"),
        ("exchange", "measure the networks of --keep_models without the exchange between their columns"),
    ):
        command = commands.add_parser(name, help=help_text)
        command.add_argument("experiments", nargs="+", choices=EXPERIMENTS, metavar="EXPERIMENT")
        command.add_argument("--folder", default="tf_logs/benchmarks", help="where the runs are (%(default)s)")
        if name == "run":
            command.add_argument("--data_dir", type=os.path.abspath, help="data of the script; needed for faces")
            command.add_argument("--seeds", type=seeds, default=seeds("0-4"), help="as 0-4 or 0,2,5 (0-4)")
            command.add_argument("--settings", nargs="+", metavar="SETTING", help="train only these (all)")
            command.add_argument("--keep_models", action="store_true", help="keep the folders of the runs")
    merge = commands.add_parser("merge", help="add the runs of another folder of results")
    merge.add_argument("results", help="the folder, for instance benchmarks/results of a worktree")
    report = commands.add_parser("report", help="make tables and figures")
    report.add_argument("--check", action="store_true", help="only compare them with those that are there")
    return parser


def main():
    args = make_parser().parse_args()
    if args.command == "report":
        from . import report

        return report.main(args.check)
    from . import models, run

    if args.command == "merge":
        run.merge(args.results)
        return 0
    for name in args.experiments:
        if args.command == "average":
            models.average(name, args.folder)
        elif args.command == "exchange":
            models.exchange(name, args.folder)
        elif run.needs_data(name) and not args.data_dir:
            sys.exit(f"error: {name} needs --data_dir.")
        else:
            run.run_experiment(name, args.seeds, args.settings, args.data_dir, args.folder, args.keep_models)
    return 0


if __name__ == "__main__":
    sys.exit(main())
