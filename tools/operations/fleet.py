"""Kills gateways, workers and their database at random while they take in and make jobs, and looks whether any was lost.

For SECONDS (300), GATEWAYS (2) and WORKERS (3) share a PostgreSQL of this machine and a folder. JOBS (200) of mixed sizes
are sent to whichever gateway answers; every few seconds one of the processes, or the database, gets a `kill -9` and is
started again a moment later. Then all must be there, once, and as a single server makes them. SEED (1) makes the moments
the same again. BIN names the program.
"""

import contextlib
import os
import random
import threading
import time

import client
from engine import Engine
from report import Report
from server import Server

SECONDS = float(os.environ.get("SECONDS", 300))
JOBS = int(os.environ.get("JOBS", 200))
GATEWAYS = int(os.environ.get("GATEWAYS", 2))
WORKERS = int(os.environ.get("WORKERS", 3))
SEED = int(os.environ.get("SEED", 1))
LONGEST_PAUSE_S = 6
LONGEST_ABSENCE_S = 3
LIMIT_S = 900
# The last one takes a second or two, so that kills come in its middle.
SIZES = [("64x64", 4), ("128x128", 8), ("256x256", 8), ("384x384", 30)]
FILES = [("image", client.picture(96, 64))]


def form_of(seed: int) -> dict:
    size, steps = SIZES[seed % len(SIZES)]
    return {"prompt": "make it red", "seed": str(seed), "num_inference_steps": str(steps), "size": size}


class Fleet:
    """The database, the gateways and the workers; each may be killed and started again."""

    def __init__(self, engine: Engine):
        self.engine = engine
        self.lock = threading.Lock()
        self.gateways = [self.process("gateway") for _ in range(GATEWAYS)]
        self.workers = [self.process("worker") for _ in range(WORKERS)]

    def process(self, role: str) -> Server:
        settings = {**self.engine.settings, "DIFFUSER_ROLE": role, "DIFFUSER_JOBS_MAX_TRIES": "1000",
                    "DIFFUSER_THREADS": "1"}
        return Server(models=("tiny-random",) if role == "worker" else (), settings=settings)

    def ports(self):
        with self.lock:
            return [gateway.port for gateway in self.gateways]

    def kill_one(self, moments: random.Random) -> str:
        """Which one it was."""
        victims = [("gateway", index) for index in range(GATEWAYS)]
        victims += [("worker", index) for index in range(WORKERS)] + [("engine", 0)]
        role, index = moments.choice(victims)
        absence_s = moments.uniform(0, LONGEST_ABSENCE_S)
        if role == "engine":
            self.engine.kill()
            time.sleep(absence_s)
            self.engine.start()
            return role
        members = self.gateways if role == "gateway" else self.workers
        members[index].process.kill()
        members[index].process.wait()
        time.sleep(absence_s)
        started = self.process(role)
        with self.lock:
            members[index] = started
        return role

    def end(self):
        for member in self.gateways + self.workers:
            member.end()


def anywhere(fleet: Fleet, ask, moments: random.Random):
    """What any gateway answers, however long it takes until one does."""
    begun = time.monotonic()
    while time.monotonic() - begun < LIMIT_S:
        with contextlib.suppress(OSError, client.BrokenAnswer, ValueError):
            answer = ask(moments.choice(fleet.ports()))
            if answer.status < 500 and answer.status != 429:
                return answer
        time.sleep(0.1)
    raise TimeoutError("no gateway answered")


def send(fleet: Fleet, seed: int, moments: random.Random) -> str:
    fields = {**form_of(seed), "background": "true"}
    name = {"Idempotency-Key": f"seed-{seed}"}
    answer = anywhere(fleet, lambda port: client.post_form(port, "/v1/images/edits", fields, FILES, 20, name), moments)
    if answer.status != 202:
        raise RuntimeError(f"{answer.status} {answer.body[:300]}")
    return answer.json()["id"]


def send_all(fleet: Fleet, known: dict, until: float) -> None:
    moments = random.Random(SEED + 1)
    for seed in range(JOBS):
        known[seed] = send(fleet, seed, moments)
        time.sleep(max(0, (until - time.monotonic()) / (JOBS - seed)))


def until_ended(fleet: Fleet, job: str, moments: random.Random) -> dict:
    begun = time.monotonic()
    while time.monotonic() - begun < LIMIT_S:
        seen = anywhere(fleet, lambda port: client.get(port, f"/v1/jobs/{job}", 20), moments).json()
        if seen["status"] not in ("queued", "running"):
            return seen
        time.sleep(0.05)
    raise TimeoutError(f"{job} did not end")


def look_at_the_end(fleet: Fleet, known: dict, report: Report) -> None:
    moments = random.Random(SEED + 2)
    wrong, tries, listed, page = [], 0, [], {"has_more": True, "last_id": None}
    with Server(settings={"DIFFUSER_THREADS": "1"}) as single:
        for seed, job in known.items():
            seen = until_ended(fleet, job, moments)
            tries += seen["tries"]
            result = anywhere(fleet, lambda port: client.get(port, f"/v1/jobs/{job}/result", 60), moments)
            direct = client.post_form(single.port, "/v1/images/edits", form_of(seed), FILES)
            if result.status != 200 or result.picture() != direct.picture():
                wrong.append((seed, seen["status"], result.status))
    while page["has_more"]:
        after = f"&after={page['last_id']}" if page["last_id"] else ""
        page = anywhere(fleet, lambda port: client.get(port, f"/v1/jobs?limit=100{after}", 20), moments).json()
        listed += [job["id"] for job in page["data"]]
    report.line(len(listed) == len(set(listed)) == JOBS, "jobs", len(listed), f"{JOBS}, none twice")
    report.line(sorted(known.values()) == sorted(listed), "the jobs that were answered", len(known), "all, under their names")
    report.line(not wrong, "jobs without the picture of a single server", wrong, "none, bit by bit")
    results = [path for path in fleet.engine.files.rglob("*.result")]
    report.line(len(results) == JOBS, "objects of results", len(results), f"{JOBS}")
    print(f"    {tries} tries of {JOBS} jobs")


def main() -> None:
    report, moments, known, killed = Report(), random.Random(SEED), {}, {}
    with Engine() as engine:
        print(engine.version())
        fleet = Fleet(engine)
        try:
            until = time.monotonic() + SECONDS
            sender = threading.Thread(target=send_all, args=(fleet, known, until))
            sender.start()
            while time.monotonic() < until:
                time.sleep(moments.uniform(0.5, LONGEST_PAUSE_S))
                role = fleet.kill_one(moments)
                killed[role] = killed.get(role, 0) + 1
            sender.join()
            print(f"killed in {SECONDS:.0f} s: {killed}")
            look_at_the_end(fleet, known, report)
        finally:
            fleet.end()
    report.end()


if __name__ == "__main__":
    main()
