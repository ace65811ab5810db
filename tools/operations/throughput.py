"""How many jobs one, two and three workers make, and what a gateway and a queue add to a request.

Prints ratios of one run: workers of half a processor each (control groups of version 1; as root) are started in turn, ROUNDS (3)
times, and get JOBS (40) jobs at once; then REQUESTS (300) small requests go, one after the other and by turns, to a single
server, to one as jobs (in memory, in SQLite), and through a gateway to a worker. With BEFORE, the path of another build of the
program, the same requests go to that one, too. BIN names the program.
"""

import contextlib
import os
import random
import statistics
import tempfile
import time
from pathlib import Path

import client
import server
from engine import Engine
from server import Server

ROUNDS = int(os.environ.get("ROUNDS", 3))
JOBS = int(os.environ.get("JOBS", 40))
REQUESTS = int(os.environ.get("REQUESTS", 300))
BEFORE = os.environ.get("BEFORE")
CGROUPS = Path("/sys/fs/cgroup/cpu")
EDITS = "/v1/images/edits"
FILES = [("image", client.picture(96, 64))]
WORK = {"prompt": "make it red", "seed": "7", "num_inference_steps": "8", "size": "256x256"}
SMALL = {"prompt": "make it red", "seed": "7", "num_inference_steps": "2", "size": "64x64"}
PERIOD_US = 100_000


@contextlib.contextmanager
def half_a_processor(process):
    group = CGROUPS / f"diffuser-{process.pid}"
    group.mkdir()
    (group / "cpu.cfs_period_us").write_text(str(PERIOD_US))
    (group / "cpu.cfs_quota_us").write_text(str(PERIOD_US // 2))
    (group / "cgroup.procs").write_text(str(process.pid))
    try:
        yield
    finally:
        process.kill()
        process.wait()
        for _ in range(100):
            with contextlib.suppress(OSError):
                group.rmdir()
                break
            time.sleep(0.05)


def fleet_of(stack, engine, workers: int) -> Server:
    """The gateway."""
    shared = {**engine.settings, "DIFFUSER_THREADS": "1"}
    started = [Server(settings={**shared, "DIFFUSER_ROLE": "worker"}) for _ in range(workers)]
    gateway = Server(models=(), settings={**shared, "DIFFUSER_ROLE": "gateway"})
    for each in (*started, gateway):
        each.wait_until(each.is_ready, 120)
        stack.callback(each.end)
    for worker in started:
        stack.enter_context(half_a_processor(worker.process))
    return gateway


def jobs_a_second(engine, workers: int) -> float:
    with contextlib.ExitStack() as stack:
        gateway = fleet_of(stack, engine, workers)
        # The first pictures of a process take longer.
        send(gateway, 3 * workers)
        until_done(engine)
        engine.ask("DELETE FROM diffuser_jobs")
        send(gateway, JOBS)
        until_done(engine)
        took_ms = engine.ask("SELECT max(ended_ms) - min(started_ms) FROM diffuser_jobs")
        failed = engine.ask("SELECT count(*) FROM diffuser_jobs WHERE state <> 'succeeded'")
        assert failed == "0", failed
        engine.ask("DELETE FROM diffuser_jobs")
        return JOBS / float(took_ms) * 1000


def send(gateway, count: int) -> None:
    for seed in range(count):
        answer = client.post_form(gateway.port, EDITS, {**WORK, "seed": str(seed), "background": "true"}, FILES)
        assert answer.status == 202, answer.body


def until_done(engine) -> None:
    while engine.ask("SELECT count(*) FROM diffuser_jobs WHERE state IN ('queued', 'running')") != "0":
        time.sleep(0.2)


def throughput(engine) -> None:
    rates = {workers: [] for workers in (1, 2, 3)}
    for _ in range(ROUNDS):
        for workers, of in rates.items():
            of.append(jobs_a_second(engine, workers))
    medians = {workers: statistics.median(of) for workers, of in rates.items()}
    for workers, rate in medians.items():
        seen = ", ".join(f"{each:.2f}" for each in rates[workers])
        print(f"{workers} workers of half a processor: {rate:.2f} jobs/s, {rate / medians[1]:.2f} of one ({seen})")


def directly(port: int) -> None:
    answer = client.post_form(port, EDITS, SMALL, FILES)
    assert answer.status == 200, answer.body


def as_job(port: int) -> None:
    """Until its result is there; its events say when."""
    job = client.post_form(port, EDITS, {**SMALL, "background": "true"}, FILES).json()["id"]
    client.get(port, f"/v1/jobs/{job}/events")
    assert client.get(port, f"/v1/jobs/{job}/result").status == 200


def single(stack, program=None, **settings) -> int:
    usual, server.BIN = server.BIN, program or server.BIN
    try:
        started = stack.enter_context(Server(settings={"DIFFUSER_THREADS": "1", **settings}))
    finally:
        server.BIN = usual
    return started.port


def overhead(engine) -> None:
    with contextlib.ExitStack() as stack:
        shared = {**engine.settings, "DIFFUSER_THREADS": "1"}
        stack.enter_context(Server(settings={**shared, "DIFFUSER_ROLE": "worker"}))
        gateway = stack.enter_context(Server(models=(), settings={**shared, "DIFFUSER_ROLE": "gateway"}))
        data = stack.enter_context(tempfile.TemporaryDirectory())
        alone, kept = single(stack), single(stack, DIFFUSER_DATA_DIR=data)
        ways = {
            "a single server": (directly, alone),
            "a single server, as a job in memory": (as_job, alone),
            "a single server, as a job in SQLite": (as_job, kept),
            "a gateway, PostgreSQL and a worker": (directly, gateway.port),
            "the same, as a job": (as_job, gateway.port),
        }
        if BEFORE:
            ways["the other build"] = (directly, single(stack, program=BEFORE))
        times = {way: [] for way in ways}
        for number in range(REQUESTS + 5):
            # What was asked before leaves the processors in another state.
            for way, (ask, port) in random.sample([*ways.items()], len(ways)):
                begun = time.perf_counter()
                ask(port)
                if number >= 5:
                    times[way].append((time.perf_counter() - begun) * 1000)
    usual = statistics.median(times["a single server"])
    for way, of in times.items():
        quick, median, slow = statistics.quantiles(of, n=4)
        print(f"{way}: {median:.1f} ms ({quick:.1f} to {slow:.1f}): {median - usual:+.1f} ms, {median / usual:.3f} of the first")


def main() -> None:
    with Engine() as engine:
        print(engine.version())
        overhead(engine)
        if CGROUPS.is_dir() and os.geteuid() == 0:
            throughput(engine)
        else:
            print("not root, or no control groups of version 1: workers cannot be held to half a processor")


if __name__ == "__main__":
    main()
