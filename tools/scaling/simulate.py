"""How long jobs wait before 1 to 512 workers: prints the tables of docs/scaling.md.

    python3 tools/scaling/simulate.py             # all of them
    python3 tools/scaling/simulate.py --only order --workers 1,8 --jobs 5000
"""

import argparse

from report import BY_SIZE, head, loading_cell, row
from simulation import Affinity, Simulation, placement
from workload import MODEL_SHARES, PROFILES, SIZES, arrivals, client_count

LOADS = (0.70, 0.95)
ORDER_NAMES = {"fair": "ours", "fcfs": "first come"}


class Runs:
    """Makes the runs of a row, one for each seed, from what is the same in a table."""

    def __init__(self, options, profile, models, clients="equal"):
        self.options, self.profile = options, profile
        self.models, self.clients = models, clients

    def __call__(self, workers, load, order="fair", affinity=Affinity.WARM_FIRST, loading_s=None, patience_s=0.0):
        options = self.options
        placed = placement(workers, MODEL_SHARES[self.models])
        loading_s = options.loading_s if loading_s is None else loading_s
        # Sixty for each worker at least, so that some time passes.
        count = max(options.jobs, 60 * workers)
        outcomes = []
        for seed in range(options.seed, options.seed + options.seeds):
            jobs = arrivals(self.profile, workers, load, count, seed, self.models, self.clients)
            outcomes.append(Simulation(jobs, placed, self.models, order, affinity, loading_s, patience_s).run())
        return outcomes


def order_table(options, profile):
    """The server's order beside first come first served; all workers have the one model, and all
    clients ask for as much."""
    runs = Runs(options, profile, models=1)
    yield from head(["workers", "load", "order"], BY_SIZE)
    for workers in options.workers:
        for load in LOADS:
            for order, name in ORDER_NAMES.items():
                yield row([str(workers), f"{load:.0%}", name], runs(workers, load, order), BY_SIZE)


def clients_table(options, profile):
    """The same where the n-th client asks 1/n as often as the first: by who asks."""
    runs = Runs(options, profile, models=1, clients="unequal")
    yield from head(["workers", "load", "clients", "order"], ["who asks most", "the half that asks least"])
    for workers in options.workers:
        count = client_count(workers)
        groups = {"most": lambda job: job.client == 0, "least": lambda job, half=count // 2: job.client >= half}
        for load in LOADS:
            for order, name in ORDER_NAMES.items():
                labels = [str(workers), f"{load:.0%}", str(count), name]
                yield row(labels, runs(workers, load, order), groups)


def affinity_table(options, profile):
    """Four models, by who may take a job; in the server's order, and first come first served."""
    runs = Runs(options, profile, models=4)
    yield from head(["workers", "load", "who takes a job", "order", "loading"], BY_SIZE)
    kinds = [(affinity, "fair") for affinity in Affinity] + [(Affinity.PATIENT, "fcfs")]
    for workers in options.workers:
        for load in LOADS:
            for affinity, order in kinds:
                if affinity is Affinity.PINNED and workers < len(MODEL_SHARES[4]):
                    continue
                outcomes = runs(workers, load, order, affinity)
                labels = [str(workers), f"{load:.0%}", affinity.value, ORDER_NAMES[order], loading_cell(outcomes)]
                yield row(labels, outcomes, BY_SIZE)


LOADING_KINDS = (
    ("warm first", Affinity.WARM_FIRST, 0.0),
    ("patient", Affinity.PATIENT, 0.0),
    ("patient, 120 s at least", Affinity.PATIENT, 120.0),
)


def loading_table(options, profile):
    """The same by how long loading takes, for the second number of workers."""
    runs = Runs(options, profile, models=4)
    yield from head(["workers", "load", "loading takes, s", "who takes a job", "loading"], BY_SIZE)
    for workers in options.workers[1:2]:
        for load in LOADS:
            for loading_s in (5.0, 30.0, 120.0, 600.0):
                for name, affinity, patience_s in LOADING_KINDS:
                    if patience_s and patience_s <= loading_s:
                        continue  # the same as above
                    outcomes = runs(workers, load, "fair", affinity, loading_s, patience_s)
                    labels = [str(workers), f"{load:.0%}", f"{loading_s:.0f}", name]
                    yield row([*labels, loading_cell(outcomes)], outcomes, BY_SIZE)


def headroom_table(options, profile):
    """One model, by load, for as many workers as one model has more often than 512."""
    runs = Runs(options, profile, models=1)
    yield from head(["workers", "load"], BY_SIZE)
    for workers in (2, 4, 8, 16, 32):
        for load in (0.5, 0.7, 0.8, 0.9):
            yield row([str(workers), f"{load:.0%}"], runs(workers, load), BY_SIZE)


TABLES = {
    "order": ("card", order_table),
    "order-cpu": ("cpu", order_table),
    "clients": ("card", clients_table),
    "affinity": ("card", affinity_table),
    "loading": ("card", loading_table),
    "headroom": ("card", headroom_table),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=TABLES, help="this table; may be given again")
    parser.add_argument("--workers", default="1,8,64,512", help="how many, with commas")
    parser.add_argument("--jobs", type=int, default=16_000, help="of each run, at least")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=1, help="runs of each row, which are pooled")
    parser.add_argument("--loading-s", type=float, default=120.0, help="seconds that a model takes to load")
    options = parser.parse_args()
    options.workers = [int(workers) for workers in options.workers.split(",")]
    for name in options.only or TABLES:
        profile_name, table = TABLES[name]
        profile = PROFILES[profile_name]
        print(f"\n### {name}\n\n{profile.title}.", end=" ")
        times = zip(SIZES, profile.seconds, profile.shares, strict=True)
        print("; ".join(f"{size} {taken} s, {share:.0%} of the jobs" for size, taken, share in times) + ".\n")
        for line in table(options, profile):
            print(line, flush=True)


if __name__ == "__main__":
    main()
