"""Mixed work of many clients at a time: is each request answered once, and does the server stay as it was?

CLIENTS (50) ask for SECONDS (600); a process of its own asks /health twenty times a second.
Exits 1 if anything fell short. README.md says what right looks like.
"""

import base64
import collections
import json
import os
import random
import re
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

import client
import fixed
from report import Report
from server import ROOT, Server

CLIENTS = int(os.environ.get("CLIENTS", 50))
SECONDS = float(os.environ.get("SECONDS", 600))
HEALTH_P99_MS = 50
PROBE_PERIOD_MS = 50

EDITING = ("demo", "tiny-random")
GENERATING = ("sd", "qwen-image")
# Those that make pictures from words are checkpoints with random weights that tests use.
MODELS = EDITING + (ROOT / "tests/data/stable_diffusion/sd", ROOT / "tests/data/fixtures/ckpt/qwen-image")

# What is kept on purpose is small, so that it is full within a minute and memory can be flat after it.
SETTINGS = {
    "DIFFUSER_PICTURES_MAX_BYTES": str(2 << 20),
    "DIFFUSER_CACHE_BYTES": str(4 << 20),
    "DIFFUSER_QUEUE_CAPACITY": "24",
}

SIZES = ("64x64", "96x160", "128x128", "160x96", "200x200", "256x256")


class Tally:
    """What clients saw, all of them together."""

    def __init__(self):
        self.lock = threading.Lock()
        self.statuses = collections.Counter()
        self.operations = collections.Counter()
        self.faults = []
        self.ids = collections.Counter()
        self.left = 0

    def note(self, operation: str, answer: client.Answer):
        with self.lock:
            self.statuses[answer.status] += 1
            self.operations[operation] += 1
            self.ids[answer.headers.get("x-request-id", "")] += 1

    def fault(self, operation: str, what: str):
        with self.lock:
            self.faults.append(f"{operation}: {what}")

    def note_left(self):
        with self.lock:
            self.left += 1


class Client:
    """Asks for one thing after the other."""

    def __init__(self, port: int, number: int, tally: Tally, end: float):
        self.port, self.tally, self.end = port, tally, end
        self.random = random.Random(number)
        self.picture = client.picture(96 + 8 * (number % 9), 120)
        self.operations = {
            self.edit: 6, self.edit_json: 2, self.generate: 4, self.vary: 3, self.by_url: 2, self.as_file: 2,
            self.stream: 4, self.leave: 3, self.be_wrong: 1, self.look: 2,
        }

    def run(self):
        while time.monotonic() < self.end:
            operation = self.random.choices(list(self.operations), self.operations.values())[0]
            try:
                operation(operation.__name__)
            except Exception as error:  # Whatever it is, it is an answer that was not one.
                self.tally.fault(operation.__name__, f"{type(error).__name__}: {error}")

    def wish(self, model: str) -> dict:
        """A seed of its own shows that an answer is this request's and nobody else's."""
        return {
            "model": model,
            "size": "128x128" if model == "demo" else self.random.choice(SIZES),
            "seed": self.random.randrange(1 << 40),
            "num_inference_steps": self.random.choice((1, 2, 4)),
        }

    def edit_wish(self) -> dict:
        model = "demo" if self.random.random() < 0.15 else "tiny-random"
        return {"prompt": self.random.choice(("make it sepia", "mirror it", "blur it")), **self.wish(model)}

    def post_form(self, operation: str, path: str, wish: dict, headers=None) -> client.Answer:
        answer = client.post_form(self.port, path, wish, [("image", self.picture)], headers=headers)
        return self.noted(operation, answer)

    def noted(self, operation: str, answer: client.Answer) -> client.Answer:
        self.tally.note(operation, answer)
        if answer.status == 429:
            if "retry-after" not in answer.headers:
                self.tally.fault(operation, "429 without Retry-After")
            time.sleep(min(2.0, float(answer.headers.get("retry-after", 1))))
        return answer

    def hold(self, operation: str, wish: dict, seeds: list):
        """The answer is to this very request."""
        expected = [wish["seed"] + index for index in range(wish.get("n", 1))]
        if seeds != expected:
            self.tally.fault(operation, f"asked for seeds {expected}, got {seeds}")

    def seeds_of(self, answer: client.Answer) -> list:
        return [picture["seed"] for picture in answer.json()["data"]]

    def edit(self, operation):
        wish = self.edit_wish() | {"n": self.random.choice((1, 1, 1, 2))}
        answer = self.post_form(operation, "/v1/images/edits", wish)
        if answer.status == 200:
            self.hold(operation, wish, self.seeds_of(answer))

    def edit_json(self, operation):
        data_url = "data:image/png;base64," + base64.b64encode(self.picture).decode()
        wish = self.edit_wish()
        answer = client.post_json(self.port, "/v1/images/edits", wish | {"images": [{"image_url": data_url}]})
        if self.noted(operation, answer).status == 200:
            self.hold(operation, wish, self.seeds_of(answer))

    def generate(self, operation):
        wish = self.wish(self.random.choice(GENERATING)) | {"prompt": "a fox"}
        answer = self.noted(operation, client.post_json(self.port, "/v1/images/generations", wish))
        if answer.status == 200:
            self.hold(operation, wish, self.seeds_of(answer))

    def vary(self, operation):
        wish = self.wish(self.random.choice(GENERATING))
        answer = self.post_form(operation, "/v1/images/variations", wish)
        if answer.status == 200:
            self.hold(operation, wish, self.seeds_of(answer))

    def by_url(self, operation):
        wish = self.edit_wish() | {"response_format": "url"}
        answer = self.post_form(operation, "/v1/images/edits", wish)
        if answer.status != 200:
            return
        self.hold(operation, wish, self.seeds_of(answer))
        address = answer.json()["data"][0]["url"]
        path = "/" + address.split("/", 3)[3]
        file = client.get(self.port, path)
        # With little room the oldest pictures go at once when many are made.
        if file.status not in (200, 404) or (file.status == 200 and file.body[:4] != b"\x89PNG"):
            self.tally.fault(operation, f"{file.status} for the picture's address")

    def as_file(self, operation):
        wish, kind = self.edit_wish(), self.random.choice(("png", "jpeg", "webp"))
        answer = self.post_form(operation, "/v1/images/edits", wish, {"Accept": f"image/{kind}"})
        if answer.status == 200:
            self.hold(operation, wish, [int(answer.headers["x-diffuser-seed"])])

    def stream(self, operation):
        wish = self.edit_wish() | {"stream": "true", "partial_images": self.random.randrange(4)}
        answer = self.post_form(operation, "/v1/images/edits", wish)
        if answer.status != 200:
            return
        events = list(answer.events())
        last = [data for name, data in events if name.endswith(".completed")]
        if len(last) != 1 or events[-1][1] is not last[0]:
            self.tally.fault(operation, f"events {[name for name, _ in events]}: {events[-1:]}"[:300])
        else:
            self.hold(operation, wish, [last[0]["seed"]])

    def leave(self, operation):
        """Stops anywhere: while it sends, while it waits, or while it reads."""
        wish = self.edit_wish() | {"num_inference_steps": 20}
        if self.random.random() < 0.5:
            wish |= {"stream": "true", "partial_images": 2}
        body, headers = client.form(wish, [("image", self.picture)])
        whole = client.request_bytes("POST", "/v1/images/edits", body, headers)
        sent = len(whole) if self.random.random() < 0.8 else self.random.randrange(len(whole))
        connection = client.Raw(self.port, whole[:sent])
        time.sleep(self.random.random())
        connection.close()
        self.tally.note_left()

    def be_wrong(self, operation):
        answer = client.post_form(self.port, "/v1/images/edits", self.edit_wish(), [("image", b"no picture")])
        self.tally.note(operation, answer)
        if answer.status not in (400, 429):
            self.tally.fault(operation, f"{answer.status} for what is no picture")

    def look(self, operation):
        path = self.random.choice(("/v1/models", "/v1/models/demo", "/", "/openapi.json"))
        answer = client.get(self.port, path)
        self.tally.note(operation, answer)
        if answer.status != 200:
            self.tally.fault(operation, f"{answer.status} for {path}")


class Watch:
    """Memory and descriptors, five times a second."""

    def __init__(self, server: Server):
        self.server, self.resident, self.descriptors = server, [], []

    def run(self, end: float):
        while time.monotonic() < end:
            self.resident.append(self.server.resident_bytes() / 2**20)
            self.descriptors.append(self.server.descriptors())
            time.sleep(0.2)


def percentile(values, share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def as_if_asked_on_time(took_ms) -> list:
    """While one answer was late, others would have been asked for: they would have been late, too."""
    return [late for took in took_ms for late in (took, *late_ones(took))]


def late_ones(took_ms: float):
    while took_ms > PROBE_PERIOD_MS:
        took_ms -= PROBE_PERIOD_MS
        yield took_ms


def probe(port: int) -> subprocess.Popen:
    program = Path(__file__).with_name("health_probe.py")
    return subprocess.Popen([sys.executable, program, str(port), str(SECONDS)], stdout=subprocess.PIPE)


def work(server: Server):
    """All clients at once; what they saw, what was seen of the server, how /health answered."""
    tally, watch = Tally(), Watch(server)
    end = time.monotonic() + SECONDS
    health = probe(server.port)
    clients = [Client(server.port, number, tally, end) for number in range(CLIENTS)]
    threads = [threading.Thread(target=one.run) for one in clients]
    for thread in threads:
        thread.start()
    watch.run(end)
    for thread in threads:
        thread.join()
    return tally, watch, json.loads(health.communicate()[0])


def report_answers(report: Report, tally: Tally, log: str):
    statuses = dict(sorted(tally.statuses.items()))
    report.line(all(status < 500 for status in statuses), "answers", statuses, "no 5xx; 429 is an answer")
    right = "each answer whole, alone on its connection, with the request's own seeds"
    report.line(not tally.faults, "faults", f"{len(tally.faults)} {tally.faults[:5]}", right)
    twice = sum(count - 1 for count in tally.ids.values())
    report.line(twice == 0 and "" not in tally.ids, "request ids", f"{len(tally.ids)}, {twice} more than once", "each once")
    logged = collections.Counter(re.findall(r'\bid\W{1,4}([0-9a-f-]{36})\W.*?request answered', log))
    if logged:
        others = [one for one in tally.ids if logged[one] != 1 and one]
        # Those of quick lookups are logged for debugging only.
        unlogged = sum(logged[one] == 0 for one in others)
        report.line(len(others) == unlogged <= tally.operations["look"], "log lines of these ids",
                    f"{sum(logged.values())}, {len(others) - unlogged} ids twice, {unlogged} none", "one for each picture asked for")


def report_server(report: Report, watch: Watch, health: dict, before: int, server: Server):
    corrected = as_if_asked_on_time(health["took_ms"])
    p99 = percentile(corrected, 0.99)
    seen = f"p50 {percentile(corrected, 0.5):.1f}, p99 {p99:.1f}, worst {max(corrected):.0f} ms of {len(health['took_ms'])}"
    right = f"p99 under {HEALTH_P99_MS} ms, all 200"
    report.line(p99 < HEALTH_P99_MS and not health["failures"], "/health", f"{seen}, {health['failures'][:5]}", right)
    minute = max(1, len(watch.resident) // 10)
    tenths = [statistics.mean(watch.resident[start:start + minute]) for start in range(0, 10 * minute, minute)]
    second, last = tenths[1], statistics.mean(watch.resident[-minute:])
    # Smaller is as good.
    report.line(last <= second * 1.05, "memory", f"second tenth {second:.0f} MiB, last tenth {last:.0f} MiB", "within 5 %")
    print(f"    mean MiB by tenths of the time: {' '.join(f'{mean:.0f}' for mean in tenths)}")
    floors = [percentile(watch.resident[start:start + minute], 0.1) for start in range(0, 10 * minute, minute)]
    print(f"    what is there when little is in flight: {' '.join(f'{floor:.0f}' for floor in floors)}")
    second, last = max(watch.descriptors[minute:2 * minute]), max(watch.descriptors[-minute:])
    report.line(last <= second + CLIENTS // 5, "descriptors", f"at most {second} in the second tenth, {last} in the last", "flat")
    idle_s = server.wait_until(server.is_idle, 30)
    report.line(idle_s < 10, "at rest again", f"{idle_s:.1f} s after the last client", "within 10 s")
    time.sleep(1)
    after = server.descriptors()
    report.line(after <= before + 2, "descriptors at rest", f"{before} before, {after} after", "the same")


def main():
    report = Report()
    with Server(MODELS, SETTINGS) as fresh:
        expected = fixed.pictures(fresh.port, EDITING, GENERATING)
    with Server(MODELS, SETTINGS) as server:
        fixed.pictures(server.port, EDITING, GENERATING)
        before = server.descriptors()
        tally, watch, health = work(server)
        print(f"{CLIENTS} clients, {SECONDS:.0f} s: {dict(tally.operations)}, {tally.left} left in the middle")
        report_server(report, watch, health, before, server)
        report_answers(report, tally, server.log_text())
        made = fixed.pictures(server.port, EDITING, GENERATING)
        same = [model for model in made if made[model] == expected[model] and made[model]]
        report.line(len(same) == len(made), "pictures with a fixed seed", f"{len(same)} of {len(made)} models", "as a fresh server's, bit by bit")
    report.end()


if __name__ == "__main__":
    main()
