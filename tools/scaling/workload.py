"""Jobs as they arrive: sizes with their times, models with their shares, clients.

Times of a size are seconds of work of one worker. A profile says where they are from; whatever has
no source is an assumption, and is called one.
"""

import random
from dataclasses import dataclass
from itertools import accumulate

SIZES = ("small", "medium", "large")


@dataclass(frozen=True)
class Profile:
    """How long jobs take, and where that is from."""

    title: str
    seconds: tuple  # of each of SIZES
    source: tuple  # of each of SIZES
    shares: tuple = (0.6, 0.3, 0.1)  # of the jobs: an assumption

    @property
    def mean_s(self):
        """Seconds of a job on average."""
        return sum(share * seconds for share, seconds in zip(self.shares, self.seconds, strict=True))


PROFILES = {
    "card": Profile(
        "a card: Qwen-Image-Edit-2511 in bfloat16 on one NVIDIA H100, as others have published it; not ours",
        (1.27, 13.84, 53.69),
        (
            "4 steps with a distilled LoRA, without guidance: LightX2V, its chart of December 2025",
            "512x512, two input pictures, 20 steps with guidance: vLLM-Omni's CI baselines",
            "1536x1536, two input pictures, 35 steps with guidance: vLLM-Omni's CI baselines",
        ),
    ),
    "cpu": Profile(
        "the embedded model on 2 cores of a Xeon with AVX-512: measured, docs/performance.md",
        (0.46, 3.4, 100.0),
        (
            "README's edit (section Loading)",
            "an edit at the model's own size, 8 steps (section Answering meanwhile)",
            "an edit of a megapixel (section Answering meanwhile)",
        ),
    ),
}

# Shares of the jobs that four models have: an assumption. The first alone: "one model".
MODEL_SHARES = {1: (1.0,), 4: (0.55, 0.25, 0.15, 0.05)}


class Job:
    """A job: what is known when it arrives, and what became of it."""

    __slots__ = (
        "number", "arrived_s", "client", "size", "model", "cost_s", "work_s",
        "came", "passed_s", "worker", "taken_s", "began_s", "ended_s", "times_made",
    )

    def __init__(self, number, arrived_s, client, size, model, cost_s, work_s):
        self.number, self.arrived_s, self.client = number, arrived_s, client
        self.size, self.model = size, model
        self.cost_s = cost_s  # as it is estimated
        self.work_s = work_s  # as it turns out
        self.worker = self.taken_s = self.began_s = self.ended_s = None
        self.times_made = 0

    @property
    def waited_s(self):
        """From its arrival until it is worked on; loading its model is waiting, too."""
        return self.began_s - self.arrived_s


# What the n-th client asks for, beside the first: all the same, or few much and many little.
CLIENT_WEIGHTS = {"equal": lambda client: 1.0, "unequal": lambda client: 1 / (client + 1)}


def client_count(workers):
    """How many ask: an assumption."""
    return min(8 * workers, 256)


def arrivals(profile, workers, load, count, seed, models=1, clients="equal", work_s=None):
    """`count` jobs that come at random (a Poisson process) and keep `workers` busy for `load` of
    their time, loading of models not counted.

    `work_s(random, cost_s)` says how long a job of an estimated time takes; without it, just as long.
    """
    chance = random.Random(f"{seed}/{workers}/{load}/{models}/{clients}")
    rate = load * workers / profile.mean_s
    weight, clients = CLIENT_WEIGHTS[clients], range(client_count(workers))
    by_client = list(accumulate(weight(client) for client in clients))
    by_model = list(accumulate(MODEL_SHARES[models]))
    by_size = list(accumulate(profile.shares))
    now, jobs = 0.0, []
    for number in range(count):
        now += chance.expovariate(rate)
        client = chance.choices(clients, cum_weights=by_client)[0]
        size = chance.choices(range(len(SIZES)), cum_weights=by_size)[0]
        model = chance.choices(range(models), cum_weights=by_model)[0]
        cost_s = profile.seconds[size]
        work = work_s(chance, cost_s) if work_s else cost_s
        jobs.append(Job(number, now, client, size, model, cost_s, work))
    return jobs
