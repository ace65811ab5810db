"""Percentiles, and tables of them in Markdown."""

from workload import SIZES

PERCENTILES = (0.50, 0.95, 0.99)
# The first tenth of the jobs met an empty line, and is left out.
WARM_UP = 0.1


def percentile(ordered, share):
    """The smallest of some ordered numbers that as many as `share` of them do not exceed."""
    rank = -(-round(share * 1_000_000) * len(ordered) // 1_000_000)
    return ordered[max(rank, 1) - 1]


def counted(outcome):
    """The jobs of a run that count."""
    return outcome.jobs[int(len(outcome.jobs) * WARM_UP):]


def pooled_waits(outcomes, is_meant):
    """Seconds waited, ordered, of the jobs of several runs that are meant."""
    return sorted(job.waited_s for outcome in outcomes for job in counted(outcome) if is_meant(job))


def seconds(value):
    """A time to three digits, or to tenths of a second."""
    return f"{value:.1f}" if value < 100 else f"{value:.0f}"


def cell(waits):
    """The percentiles of some waits."""
    return " / ".join(seconds(percentile(waits, share)) for share in PERCENTILES)


def row(labels, outcomes, groups):
    """A row: labels, and percentiles over several runs of each group of jobs."""
    if any(outcome.grew for outcome in outcomes):
        cells = ["grows"] * len(groups)
    else:
        cells = [cell(pooled_waits(outcomes, is_meant)) for is_meant in groups.values()]
    return line([*labels, *cells])


def loading_cell(outcomes):
    """Of the workers' time that they were busy, how much they loaded models."""
    return f"{sum(outcome.share_loading() for outcome in outcomes) / len(outcomes):.0%}"


def line(cells):
    """A line of a table."""
    return "| " + " | ".join(cells) + " |"


def head(labels, groups):
    """The first two lines of a table."""
    names = [*labels, *(f"{group}: p50 / p95 / p99, s" for group in groups)]
    return [line(names), "|" + "---|" * len(names)]


BY_SIZE = {name: (lambda job, size=size: job.size == size) for size, name in enumerate(SIZES)}
