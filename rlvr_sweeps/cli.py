"""The `rlvr` command: what reads run directories. Launching is launch.py's."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from rlvr_sweeps.errors import Refused


def parser() -> argparse.ArgumentParser:
    whole = argparse.ArgumentParser(prog="rlvr", description="Look at runs. To start them: python launch.py --help")
    commands = whole.add_subparsers(dest="command", required=True)
    status = commands.add_parser("status", help="where every run stands")
    status.add_argument("runs_dir", nargs="?", type=Path, default=Path("runs"))
    status.add_argument("--json", action="store_true", help="machine-readable")
    report = commands.add_parser("report", help="a table, a CSV and an HTML page of the finished runs")
    report.add_argument("runs_dir", nargs="?", type=Path, default=Path("runs"))
    report.add_argument("--out", type=Path, help="the page; RUNS_DIR/report.html by default")
    table = commands.add_parser("table", help="a table of the paper")
    table.add_argument("number", type=int, choices=[4], help="4: trained parameters by method, counted without weights")
    return whole


def main(arguments: Sequence[str] | None = None) -> None:
    asked = parser().parse_args(arguments)
    console = Console(width=None if sys.stdout.isatty() else 140)
    try:
        if asked.command == "table":
            from rlvr_sweeps import tables

            tables.show_table4(console)
            return
        if not asked.runs_dir.is_dir():
            raise Refused(f"{asked.runs_dir} is no folder. Give the runs folder: rlvr {asked.command} /path/to/runs.")
        if asked.command == "status":
            from rlvr_sweeps import status

            if asked.json:
                print(status.as_json(asked.runs_dir))
            else:
                status.show(asked.runs_dir, console)
        else:
            from rlvr_sweeps import report

            page, table, rows = report.write_report(asked.runs_dir, asked.out or asked.runs_dir / "report.html")
            report.show(rows, console)
            console.print(f"report: {page.absolute()}\ntable:  {table.absolute()}", soft_wrap=True, highlight=False)
    except Refused as refusal:
        sys.exit(str(refusal))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
