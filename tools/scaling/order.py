"""Which job is next: the server's own order, and first come first served.

`Fair` is src/service/order.rs, rule by rule; jobs of one client, size and model are kept in a line
of their own, of which only the first can be next (the others came later, cost the same and have
been passed by no more), so that a choice looks at few of them.
"""

from collections import deque


class Fair:
    """Small before big, clients in turn, nobody passed for ever."""

    def __init__(self):
        self.now = 0.0  # virtual time: seconds of work, shared out among the clients that have some
        self.served_until = {}
        self.lines = {}  # client -> {(size, model): jobs}
        self.unfinished = {}  # client -> jobs that wait or run

    def join(self, job):
        """A job that comes now."""
        job.came = self.now
        job.passed_s = 0.0
        self.lines.setdefault(job.client, {}).setdefault((job.size, job.model), deque()).append(job)
        self.unfinished[job.client] = self.unfinished.get(job.client, 0) + 1

    def next(self, extra_s):
        """The job that is next among those whose model is in `extra_s`, which has the seconds that
        a job would take besides its own work; None if there is none."""
        best, best_end = None, 0.0
        for client, lines in self.lines.items():
            head = head_of(lines, extra_s)
            if head is None:
                continue
            start = max(head.came, self.served_until.get(client, 0.0))
            end = start + head.cost_s + extra_s[head.model]
            if best is None or (end, head.number) < (best_end, best.number):
                best, best_end = head, end
        return best

    def begin(self, job):
        """A job begins that `next` has named."""
        lines = self.lines[job.client]
        line = lines[job.size, job.model]
        line.popleft()
        if not line:
            del lines[job.size, job.model]
            if not lines:
                del self.lines[job.client]
        start = max(job.came, self.served_until.get(job.client, 0.0))
        self.served_until[job.client] = start + job.cost_s
        self.now += job.cost_s / len(self.unfinished)
        for line in lines.values():
            for other in line:
                if other.number > job.number:
                    break
                other.passed_s += job.cost_s

    def end(self, job):
        """A job has ended."""
        self.unfinished[job.client] -= 1
        if not self.unfinished[job.client]:
            del self.unfinished[job.client]
        if not self.unfinished:
            self.served_until.clear()


def head_of(lines, extra_s):
    """Which of one client's jobs is next."""
    heads, best, best_end = [], None, 0.0
    for (_, model), line in lines.items():
        extra = extra_s.get(model)
        if extra is None:
            continue
        job = line[0]
        end = job.came + job.cost_s + extra
        heads.append((job, job.cost_s + extra))
        if best is None or end < best_end or (end == best_end and job.number < best.number):
            best, best_end = job, end
    waited = [
        job for job, total_s in heads
        if job.number < best.number and job.passed_s + best.cost_s > total_s
    ]
    return min(waited, key=lambda job: job.number, default=best)


class FirstComeFirstServed:
    """By arrival alone."""

    def __init__(self):
        self.lines = {}  # model -> jobs

    def join(self, job):
        """A job that comes now."""
        self.lines.setdefault(job.model, deque()).append(job)

    def next(self, extra_s):
        """The oldest job of a model in `extra_s`."""
        heads = [line[0] for model, line in self.lines.items() if line and model in extra_s]
        return min(heads, key=lambda job: job.number, default=None)

    def begin(self, job):
        """A job begins that `next` has named."""
        self.lines[job.model].popleft()

    def end(self, job):
        """A job has ended."""


ORDERS = {"fair": Fair, "fcfs": FirstComeFirstServed}
