"""Kills the server's process at random moments while it takes in and makes jobs, and looks whether any was lost.

ROUNDS (100) times: start over the same data, send jobs, `kill -9`. Then each job that was sent has exactly one
result, and its picture is that of a request that somebody waits for. SEED (1) makes the moments the same again.
"""

import contextlib
import os
import random
import tempfile
import threading
import time
from pathlib import Path

import client
from report import Report
from server import Server

ROUNDS = int(os.environ.get("ROUNDS", 100))
JOBS_OF_A_ROUND = 3
LONGEST_LIFE_S = 0.6
LIMIT_S = 600
FILES = [("image", client.picture(48, 32))]


def form_of(seed: int) -> dict:
    return {"prompt": "make it red", "seed": str(seed), "num_inference_steps": "4", "size": "64x64"}


def send(port: int, seed: int):
    """The job; None if the server ended before it answered. The same name each time: the same job."""
    fields = {**form_of(seed), "background": "true"}
    with contextlib.suppress(OSError, client.BrokenAnswer, ValueError):
        name = {"Idempotency-Key": f"seed-{seed}"}
        answer = client.post_form(port, "/v1/images/edits", fields, FILES, headers=name)
        if answer.status != 202:
            raise RuntimeError(f"{answer.status} {answer.body[:300]}")
        return answer.json()["id"]
    return None


def round_of(number: int, folder: str, moments: random.Random, known: dict) -> None:
    """Sends jobs one after the other until the process is killed."""
    settings = {"DIFFUSER_DATA_DIR": folder, "DIFFUSER_JOBS_MAX_TRIES": "1000"}
    with Server(settings=settings) as server:
        life_s = moments.uniform(0, LONGEST_LIFE_S)

        def kill():
            time.sleep(life_s)
            server.process.kill()

        killer = threading.Thread(target=kill)
        killer.start()
        for seed in range(number * JOBS_OF_A_ROUND, (number + 1) * JOBS_OF_A_ROUND):
            job = send(server.port, seed)
            if job:
                known[seed] = job
        killer.join()
        server.process.wait()


def until_ended(port: int, job: str) -> dict:
    begun = time.monotonic()
    while time.monotonic() - begun < LIMIT_S:
        seen = client.get(port, f"/v1/jobs/{job}").json()
        if seen["status"] not in ("queued", "running"):
            return seen
        time.sleep(0.02)
    raise TimeoutError(f"{job} did not end")


def look_at_the_end(folder: str, known: dict, report: Report) -> None:
    """What there is once the server may run to the end."""
    renamed, wrong = [], []
    jobs_sent = ROUNDS * JOBS_OF_A_ROUND
    tries = 0
    with Server(settings={"DIFFUSER_DATA_DIR": folder, "DIFFUSER_JOBS_MAX_TRIES": "1000"}) as server:
        port = server.port
        for seed in range(jobs_sent):
            job = send(port, seed)
            if known.setdefault(seed, job) != job:
                renamed.append(seed)
        for seed, job in known.items():
            seen = until_ended(port, job)
            tries += seen["tries"]
            result = client.get(port, f"/v1/jobs/{job}/result")
            direct = client.post_form(port, "/v1/images/edits", form_of(seed), FILES)
            if result.status != 200 or result.picture() != direct.picture():
                wrong.append((seed, seen["status"], result.status))
        page = client.get(port, "/v1/jobs?limit=100").json()
        listed = len(page["data"])
        while page["has_more"]:
            page = client.get(port, f"/v1/jobs?limit=100&after={page['last_id']}").json()
            listed += len(page["data"])
    files = len(list((Path(folder) / "jobs.files").iterdir()))
    report.line(listed == jobs_sent, "jobs", listed, f"{jobs_sent}, none twice")
    report.line(not renamed, "jobs that became others", renamed, "none: a name stays one job's")
    report.line(not wrong, "jobs without the picture of a direct request", wrong, "none")
    report.line(files == jobs_sent, "files of results", files, f"{jobs_sent}, none left over")
    print(f"    {tries} tries of {jobs_sent} jobs")


def main() -> None:
    report = Report()
    moments = random.Random(int(os.environ.get("SEED", 1)))
    known = {}
    with tempfile.TemporaryDirectory(prefix="diffuser-jobs-") as folder:
        for number in range(ROUNDS):
            round_of(number, folder, moments, known)
        print(f"{ROUNDS} times killed; {len(known)} jobs were answered before that")
        look_at_the_end(folder, known, report)
    report.end()


if __name__ == "__main__":
    main()
