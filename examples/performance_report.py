"""The tables and the picture of a comparison."""

from collections.abc import Mapping

from performance_figures import Figures
from terminal import DIM, say, table, title

Comparison = Mapping[str, Figures]
"""The figures of each way to get a session manager: of a client per manager first, then of the pooled ones."""


def print_figures(situation: str, figures: Comparison) -> None:
    """Print a table of the ways in one situation, and how much faster pooling is."""
    title(situation)
    header = ["session manager", "per second", "p50 ms", "p95 ms", "CPU ms", "commands", "connections"]
    rows = []
    for name, found in figures.items():
        requests = len(found.milliseconds)
        cpu_ms, commands = 1000 * found.cpu_seconds / requests, found.commands / requests
        numbers = [f"{number:.1f}" for number in (found.p50, found.p95, cpu_ms, commands)]
        rows.append([name, f"{found.per_second:.0f}", *numbers, f"{found.connections:.0f}"])
    table(header, rows)
    own, pooled, *_ = figures.values()
    say(f"  → pooled: {pooled.per_second / own.per_second:.1f} times as many per second")


def explain() -> None:
    """Print what the columns mean, and what can distort them."""
    say()
    for line in (
        "CPU ms       CPU time of this process for one request",
        "commands     commands for one request that read or write documents",
        "connections  connections made during the requests, as the server counts them: a client per request makes",
        "             one for commands and up to two to monitor the server; a factory's are already open",
        "The bundled server is on this machine, without TLS or password. Over a network a connection",
        "takes 10 to 50 ms, and pooling gives more. Other work on the machine spoils times; counts are exact.",
    ):
        say(line, style=DIM)


def draw(sequential: Mapping[str, Comparison], concurrent: Mapping[int, Comparison], file: str) -> None:
    """Draw the figures into a file; its suffix chooses the format.

    Args:
        sequential: The figures of requests one after another, by situation.
        concurrent: The figures of requests of one turn, by how many ran at once.
        file: The file: .svg, .png or .pdf.
    """
    import matplotlib as mpl  # Imported here, because only the plot needs it.

    mpl.use("agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.6))
    ways = list(concurrent[1])
    # These colours differ for colour-blind readers, too.
    for at, (way, colour) in enumerate(zip(ways, ("#d55e00", "#0072b2", "#009e73"), strict=True)):
        places = [group + (at - 1) * 0.27 for group in range(len(sequential))]
        bars = left.bar(places, [figures[way].p50 for figures in sequential.values()], 0.25, color=colour)
        left.bar_label(bars, fmt="%.1f", padding=2)
        rates = [figures[way].per_second for figures in concurrent.values()]
        right.plot(list(concurrent), rates, "o-", color=colour, label=way)

    left.set_xticks(range(len(sequential)), list(sequential))
    left.set_ylabel("milliseconds, median")
    left.set_title("One after another: time of each (lower is better)")
    right.set_xscale("log", base=2)
    right.set_xticks(list(concurrent), [str(threads) for threads in concurrent])
    right.set_xlabel("requests at once")
    right.set_ylabel("requests per second")
    right.set_title("Many at once: throughput (higher is better)")
    for axes in (left, right):
        axes.margins(y=0.12)
        axes.set_ylim(bottom=0)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", alpha=0.3)
    figure.legend(loc="lower center", ncols=len(ways), frameon=False)
    figure.tight_layout(rect=(0, 0.07, 1, 1))
    figure.savefig(file, dpi=150)
