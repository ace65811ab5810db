"""Workers, models and jobs, event by event.

There is one line, everybody knows all of it, and telling takes no time: what an engine and a
network add comes on top. A worker makes one job at a time and has one model loaded.
"""

import heapq
from enum import Enum

from order import ORDERS


class Affinity(Enum):
    """Which worker a job may go to."""

    BLIND = "blind"  # any, whatever it has loaded
    WARM_FIRST = "warm first"  # one that has its model, else any
    PATIENT = "patient"  # any other only if the line for the model is longer than loading takes
    PINNED = "pinned"  # those that have its model from the start, no other


class Outcome:
    """What became of it all."""

    def __init__(self, jobs, workers):
        self.jobs, self.workers = jobs, workers
        self.loads = 0
        self.loading_s = 0.0
        self.working_s = 0.0
        self.ended_s = 0.0
        self.grew = False  # more came than could be made: it was given up

    def share_loading(self):
        """Of the workers' time that they were busy, how much they loaded models."""
        busy_s = self.loading_s + self.working_s
        return self.loading_s / busy_s if busy_s else 0.0


def placement(workers, shares):
    """The model that each worker has at the start: by their shares of the jobs, one at least if
    there are as many workers as models."""
    counts = [int(workers * share) for share in shares]
    if workers >= len(shares):
        counts = [max(1, count) for count in counts]
    while sum(counts) > workers:
        counts[counts.index(max(counts))] -= 1
    while sum(counts) < workers:
        lacking = [share * workers - count for share, count in zip(shares, counts, strict=True)]
        counts[lacking.index(max(lacking))] += 1
    return [model for model, count in enumerate(counts) for _ in range(count)]


class Simulation:
    """Runs jobs, in the order of their arrival, through workers."""

    def __init__(
        self, jobs, placed, models, order="fair", affinity=Affinity.PATIENT, loading_s=120.0, patience_s=0.0
    ):
        self.arriving = jobs
        self.order = ORDERS[order]()
        self.affinity = affinity
        self.load_time_s = loading_s
        self.patience_s = max(loading_s, patience_s)
        self.models = range(models)
        self.model_of = list(placed)  # worker -> model
        self.holders = [self.model_of.count(model) for model in self.models]
        self.idle = dict.fromkeys(range(len(placed)))  # the longest idle first
        self.idle_with = [
            dict.fromkeys(worker for worker in self.idle if placed[worker] == model) for model in self.models
        ]
        self.waiting = [0] * models
        self.waiting_s = [0.0] * models
        self.ends = []  # (when, number of the job, job)
        self.outcome = Outcome(jobs, len(placed))
        self.too_many = 10 * len(placed) + 1000

    def run(self):
        """Until all jobs are made, or too many wait."""
        for job in self.arriving:
            while self.ends and self.ends[0][0] <= job.arrived_s:
                self.finish()
            self.arrive(job)
            if sum(self.waiting) > self.too_many:
                self.outcome.grew = True
                return self.outcome
        while self.ends:
            self.finish()
        return self.outcome

    def arrive(self, job):
        """A job comes."""
        self.order.join(job)
        self.waiting[job.model] += 1
        self.waiting_s[job.model] += job.cost_s
        self.dispatch(job.arrived_s)

    def finish(self):
        """The next job ends."""
        now, _, job = heapq.heappop(self.ends)
        job.ended_s = now
        self.order.end(job)
        self.idle[job.worker] = None
        self.idle_with[self.model_of[job.worker]][job.worker] = None
        self.outcome.ended_s = now
        self.dispatch(now)

    def dispatch(self, now):
        """Gives work to idle workers, as long as there is some that they may do."""
        while self.idle:
            extra_s = self.extras()
            job = self.order.next(extra_s) if extra_s else None
            if job is None:
                return
            self.begin(now, job)

    def extras(self):
        """{model: seconds that a job of it would take besides its own work, as the order counts
        them}, for models that wait and that an idle worker may serve."""
        if self.affinity is Affinity.BLIND:
            return {model: 0.0 for model in self.models if self.waiting[model]}
        extras = {}
        for model in self.models:
            if not self.waiting[model]:
                continue
            if self.idle_with[model]:
                extras[model] = 0.0
            elif self.affinity is Affinity.WARM_FIRST or (
                self.affinity is Affinity.PATIENT and self.is_worth_loading(model)
            ):
                extras[model] = self.load_time_s
        return extras

    def is_worth_loading(self, model):
        """Whether a model's line would take its workers longer than another one takes to load it,
        and longer than what everybody is to be patient for."""
        return self.waiting_s[model] > self.patience_s * self.holders[model]

    def begin(self, now, job):
        """A job goes to a worker: to the longest idle one of those that have its model, or of all."""
        is_blind = self.affinity is Affinity.BLIND
        with_model = self.idle_with[job.model] if not is_blind else {}
        worker = next(iter(with_model or self.idle))
        before = self.model_of[worker]
        del self.idle[worker]
        del self.idle_with[before][worker]
        loading_s = 0.0 if before == job.model else self.load_time_s
        if before != job.model:
            self.model_of[worker] = job.model
            self.holders[before] -= 1
            self.holders[job.model] += 1
            self.outcome.loads += 1
        self.order.begin(job)
        self.waiting[job.model] -= 1
        self.waiting_s[job.model] -= job.cost_s
        job.worker, job.taken_s, job.began_s = worker, now, now + loading_s
        job.times_made += 1
        self.outcome.loading_s += loading_s
        self.outcome.working_s += job.work_s
        heapq.heappush(self.ends, (job.began_s + job.work_s, job.number, job))
