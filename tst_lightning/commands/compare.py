"""``tst compare RUN RUN ... --out DIR``: runs laid on common axes, over seeds."""

from pathlib import Path

from tst_lightning.commands.parser import OneLineParser
from tst_lightning.compare.report import CHART_FILE, JSON_FILE, PAGE_FILE, SPEEDUP_FILE, compare_runs
from tst_lightning.compare.terminal import table_text


def main(name: str, arguments: list[str]) -> None:
    """Compares runs, prints the table, and writes the report.

    Args:
        name: the command's name, for its help.
        arguments: the words after it.

    Raises:
        ConfigError: the options or the runs can't be compared.
        RunError: a run's files are damaged.
    """
    parser = OneLineParser(prog=f"tst {name}", description=(compare_runs.__doc__ or "").partition("Args:")[0])
    parser.add_argument("runs", nargs="+", type=str, metavar="RUN", help="run folders; the first is the reference")
    parser.add_function_arguments(compare_runs, skip={"paths"}, as_group=False)
    options = parser.parse_args(arguments)
    comparison = compare_runs(options.runs, options.out)
    print(table_text(comparison))
    print("\nreport:")
    for file in (PAGE_FILE, CHART_FILE, SPEEDUP_FILE, JSON_FILE):
        print(f"  {Path(options.out) / file}")
