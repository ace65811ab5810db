"""What clients, disks and operators do to a server, and how it is afterwards.

python faults.py [CASE…]   without a name: all. Exits 1 if anything fell short; README.md tells the cases.
After each, /health must answer at once and a picture with a fixed seed be the same as a fresh server's.
"""

import concurrent.futures
import contextlib
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import client
import fixed
from report import Report
from server import Server, knows_setting, raise_descriptor_limit

MODEL = "tiny-random"
EDITS = "/v1/images/edits"
HEALTH_LIMIT_S = 1.0
CALLED_OFF_LIMIT_S = 5.0

# Short, so that it need not be waited for long; each is a setting that operators may change.
HEADER_TIMEOUT_S, BODY_TIMEOUT_S, UPLOAD_TIMEOUT_S, IDLE_TIMEOUT_S = 3, 3, 6, 20
SLACK_S = 3
# Who is refused in the middle of a body may send on for so long, and so reads the answer.
UNREAD_S = 10
MAX_CONNECTIONS = 1024
PATIENCE = {
    "DIFFUSER_HEADER_TIMEOUT_S": str(HEADER_TIMEOUT_S),
    "DIFFUSER_BODY_TIMEOUT_S": str(BODY_TIMEOUT_S),
    "DIFFUSER_UPLOAD_TIMEOUT_S": str(UPLOAD_TIMEOUT_S),
    "DIFFUSER_IDLE_TIMEOUT_S": str(IDLE_TIMEOUT_S),
}

PICTURE = client.picture()
CASES = {}


def case(function):
    """Runs under the name of the function, without underscores."""
    CASES[function.__name__.replace("_", "-")] = function
    return function


def wish(**fields) -> dict:
    return {"model": MODEL, "prompt": "make it sepia", "size": "128x128", "num_inference_steps": 2, "seed": 7, **fields}


def long_wish(**fields) -> dict:
    """Takes a quarter of a minute or more."""
    return wish(**{"size": "1024x1024", "num_inference_steps": 100, **fields})


def edit_bytes(fields: dict) -> bytes:
    body, headers = client.form(fields, [("image", PICTURE)])
    return client.request_bytes("POST", EDITS, body, headers)


def edit(server: Server, fields: dict, **more) -> client.Answer:
    return client.post_form(server.port, EDITS, fields, [("image", PICTURE)], **more)


HALF_UPLOAD = client.request_bytes(
    "POST", EDITS, b"--b\r\n", {"Content-Type": "multipart/form-data; boundary=b"}, length=5_000_000
)


class Run:
    """A report, and the picture that a fresh server makes."""

    def __init__(self):
        self.report = Report()
        with Server([MODEL]) as fresh:
            self.expected = fixed.edit(fresh.port, MODEL).picture()

    def line(self, *arguments):
        self.report.line(*arguments)

    def unharmed(self, server: Server, what: str):
        """Nothing is left of what was done to it."""
        begun = time.monotonic()
        try:
            status = client.get(server.port, "/health", timeout_s=10).status
            took_s = time.monotonic() - begun
            is_same = fixed.edit(server.port, MODEL, timeout_s=60).picture() == self.expected
        except (OSError, client.BrokenAnswer) as error:
            return self.line(False, f"{what}: afterwards", repr(error), "200 and the same picture")
        seen = f"/health {status} in {took_s * 1000:.0f} ms, picture {'the same' if is_same else 'ANOTHER'}"
        self.line(status == 200 and took_s < HEALTH_LIMIT_S and is_same, f"{what}: afterwards", seen,
                  "200 at once, picture as a fresh server's, bit by bit")

    def called_off(self, server: Server, what: str):
        begun = time.monotonic()
        with contextlib.suppress(TimeoutError):
            server.wait_until(server.is_idle, 30)
        took_s = time.monotonic() - begun
        self.line(took_s < CALLED_OFF_LIMIT_S, what, f"at rest after {took_s:.1f} s", f"within {CALLED_OFF_LIMIT_S:.0f} s")


@contextlib.contextmanager
def left_alone(connections):
    """Closes them in the end, whatever happens."""
    try:
        yield connections
    finally:
        for connection in connections:
            connection.close()


# Clients that leave.


@case
def disconnect_in_head(run: Run):
    with Server([MODEL]) as server:
        before = server.descriptors()
        for length in (1, 10, 40):
            client.Raw(server.port, edit_bytes(wish())[:length]).close()
        descriptors_return(run, server, before, "left in the head")
        run.unharmed(server, "left in the head")


@case
def disconnect_in_body(run: Run):
    with Server([MODEL]) as server:
        before = server.descriptors()
        whole = edit_bytes(wish())
        for share in (0.2, 0.5, 0.99):
            client.Raw(server.port, whole[: int(len(whole) * share)]).close()
        descriptors_return(run, server, before, "left in the body")
        run.unharmed(server, "left in the body")


def descriptors_return(run: Run, server: Server, before: int, what: str, limit_s=5.0):
    def have_returned():
        return server.descriptors() <= before

    with contextlib.suppress(TimeoutError):
        server.wait_until(have_returned, limit_s)
    after = server.descriptors()
    run.line(after <= before, f"{what}: descriptors", f"{before} before, {after} after", "the same")


@case
def disconnect_running(run: Run):
    with Server([MODEL]) as server:
        for fields in (long_wish(), long_wish(stream="true", partial_images=2)):
            connection = client.Raw(server.port, edit_bytes(fields))
            server.wait_until(server.is_busy, 10)
            time.sleep(0.5)
            connection.close()
            run.called_off(server, f"left while it ran{', a stream' if 'stream' in fields else ''}")
        run.unharmed(server, "left while it ran")


@case
def disconnect_queued(run: Run):
    with Server([MODEL]) as server:
        with left_alone([client.Raw(server.port, edit_bytes(long_wish()))]):
            server.wait_until(server.is_busy, 10)
            waiting = client.Raw(server.port, edit_bytes(long_wish()))

            def waits():
                return server.health()["waiting"] == 1

            def waits_no_more():
                return server.health()["waiting"] == 0

            server.wait_until(waits, 10)
            waiting.close()
            took_s = server.wait_until(waits_no_more, 10)
            is_busy = server.is_busy()
            run.line(took_s < 1 and is_busy, "left while it waited", f"out of the line after {took_s:.2f} s, the other runs: {is_busy}",
                     "at once, and the other one goes on")
        run.called_off(server, "the other one left, too")
        run.unharmed(server, "left while it waited")


@case
def disconnect_half_read(run: Run):
    """Answers that are not taken: of a megabyte, and a stream."""
    with Server([MODEL]) as server:
        before = server.descriptors()
        for fields in (wish(size="1024x1024", num_inference_steps=1), long_wish(stream="true", partial_images=3)):
            connection = client.Raw(server.port, edit_bytes(fields), receive_bytes=4096)
            connection.socket.settimeout(60)
            connection.read(300)
            connection.close()
            run.called_off(server, f"left with a half read {'stream' if 'stream' in fields else 'answer'}")
        descriptors_return(run, server, before, "left with a half read answer")
        run.unharmed(server, "left with a half read answer")


@case
def storm(run: Run):
    """200 clients that ask and leave within half a second, three times."""
    chance = random.Random(1)
    with Server([MODEL]) as server:
        before = server.descriptors()
        body = edit_bytes(wish(num_inference_steps=20, size="256x256"))

        def ask_and_leave(pause_s):
            connection = client.Raw(server.port, body)
            time.sleep(pause_s)
            connection.close()

        for _ in range(3):
            with concurrent.futures.ThreadPoolExecutor(200) as pool:
                list(pool.map(ask_and_leave, [chance.random() / 2 for _ in range(200)]))
        run.called_off(server, "storm of 200, three times")
        descriptors_return(run, server, before, "storm of 200")
        run.unharmed(server, "storm of 200")


# Peers that do not finish.


@case
def half_sent_uploads(run: Run):
    with Server([MODEL], PATIENCE) as server:
        before, resident = server.descriptors(), server.resident_bytes()
        with left_alone([client.Raw(server.port, HALF_UPLOAD) for _ in range(100)]) as uploads:
            health_answers(run, server, "100 half-sent uploads")
            bodies_let_go(run, "half-sent uploads", uploads, BODY_TIMEOUT_S)
        descriptors_return(run, server, before, "half-sent uploads")
        grown = (server.resident_bytes() - resident) / 2**20
        run.line(grown < 64, "half-sent uploads: memory", f"{grown:+.0f} MiB", "under +64 MiB")
        run.unharmed(server, "half-sent uploads")


def health_answers(run: Run, server: Server, meanwhile: str):
    begun = time.monotonic()
    try:
        seen = client.get(server.port, "/health", timeout_s=10).status
    except OSError as error:
        seen = type(error).__name__
    took_s = time.monotonic() - begun
    run.line(seen == 200 and took_s < HEALTH_LIMIT_S, f"{meanwhile}: /health meanwhile", f"{seen} in {took_s * 1000:.0f} ms", "200 at once")


class LetGo:
    """Waits until the server has closed connections; notes when the last had its answer, and when it was closed."""

    def __init__(self, connections, limit_s: float, send=b""):
        """`send`: what each says twice a second as long as it is listened to."""
        begun = time.monotonic()
        self.answered_s = None
        self.left = list(connections)
        while self.left and time.monotonic() - begun < limit_s:
            time.sleep(0.5)
            self.left = [one for one in self.left if one.is_open() and (not send or one.send(send))]
            if self.answered_s is None and all(one.received for one in connections):
                self.answered_s = time.monotonic() - begun
        self.took_s = time.monotonic() - begun


def bodies_let_go(run: Run, what: str, connections, limit_s: float, send=b""):
    """They get a 408 in time, and a while to read it."""
    gone = LetGo(connections, limit_s + UNREAD_S + SLACK_S, send)
    told = sum(one.received.startswith(b"HTTP/1.1 408") for one in connections)
    answered = f"{told} of {len(connections)}, the last after {gone.answered_s or gone.took_s:.1f} s"
    holds = told == len(connections) and (gone.answered_s or gone.took_s) < limit_s + SLACK_S
    run.line(holds, f"{what}: told 408", answered, f"all after {limit_s} s (and {SLACK_S})")
    closed(run, what, gone, len(connections), limit_s + UNREAD_S)


def closed(run: Run, what: str, gone: LetGo, count: int, limit_s: float):
    open_ones = f"{len(gone.left)} of {count} open after {gone.took_s:.1f} s"
    run.line(not gone.left, f"{what}: let go", open_ones, f"none after {limit_s} s (and {SLACK_S})")


@case
def slow_heads(run: Run):
    """A byte is sent now and then: each is in time, all together are not."""
    with Server([MODEL], PATIENCE) as server:
        before = server.descriptors()
        beginning = b"GET /health HTTP/1.1\r\nHost: x\r\nX-Slow: "
        with left_alone([client.Raw(server.port, beginning) for _ in range(50)]) as slow_ones:
            health_answers(run, server, "slow heads")
            gone = LetGo(slow_ones, HEADER_TIMEOUT_S + SLACK_S, send=b"a")
            closed(run, "slow heads", gone, len(slow_ones), HEADER_TIMEOUT_S)
        descriptors_return(run, server, before, "slow heads")
        run.unharmed(server, "slow heads")


@case
def slow_bodies(run: Run):
    with Server([MODEL], PATIENCE) as server:
        before = server.descriptors()
        with left_alone([client.Raw(server.port, HALF_UPLOAD) for _ in range(50)]) as slow_ones:
            health_answers(run, server, "slow bodies")
            bodies_let_go(run, "slow bodies", slow_ones, UPLOAD_TIMEOUT_S, send=b"a")
        descriptors_return(run, server, before, "slow bodies")
        run.unharmed(server, "slow bodies")


@case
def idle_connections(run: Run):
    """5 000 connections that say nothing: the eldest make room."""
    wanted = 5000
    if raise_descriptor_limit(wanted + 500) < wanted + 500:
        return run.report.skip("idle connections", "this system allows too few descriptors")
    with Server([MODEL]) as server:
        before, resident = server.descriptors(), server.resident_bytes()
        with left_alone([]) as idle:
            for _ in range(wanted):
                idle.append(client.Raw(server.port))
            time.sleep(1)
            health_answers(run, server, f"{wanted} idle connections")
            held, grown = server.descriptors(), (server.resident_bytes() - resident) / 2**20
            run.line(held <= MAX_CONNECTIONS + before + 2, "idle connections: held", f"{held} descriptors, {grown:+.0f} MiB",
                     f"at most {MAX_CONNECTIONS} connections")
            eldest = sum(one.is_open() for one in idle[:1000])
            newest = sum(one.is_open() for one in idle[-900:])
            open_ones = f"{eldest} of the eldest 1000 open, {newest} of the newest 900"
            run.line(eldest == 0 and newest >= 890, "idle connections: who was let go", open_ones, "the eldest, not the newest")
            run.unharmed(server, "idle connections, while they are there")
        descriptors_return(run, server, before, "idle connections")
        run.unharmed(server, "idle connections")


@case
def busy_connections(run: Run):
    """As many half-sent uploads as there may be connections: who stops the server is heard."""
    if raise_descriptor_limit(4096) < 2500:
        return run.report.skip("busy connections", "this system allows too few descriptors")
    count = 64
    settings = {"DIFFUSER_MAX_CONNECTIONS": str(count), "DIFFUSER_BODY_TIMEOUT_S": "30"}
    with Server([MODEL], settings) as server:
        with left_alone([client.Raw(server.port, HALF_UPLOAD) for _ in range(count + 10)]):
            time.sleep(1)
            stop(run, server, "SIGTERM while all connections are busy", within_s=12)


@case
def few_descriptors(run: Run):
    """`ulimit -n 64`, and 200 connections."""
    with Server([MODEL], PATIENCE, limits=[(resource.RLIMIT_NOFILE, 64)]) as server:
        before = server.descriptors()
        with left_alone([client.Raw(server.port) for _ in range(200)]):
            begun = time.monotonic()
            answer = None
            with contextlib.suppress(OSError):
                answer = client.get(server.port, "/health", timeout_s=60)
            took_s, limit_s = time.monotonic() - begun, 3 * HEADER_TIMEOUT_S + SLACK_S
            run.line(bool(answer) and answer.status == 200 and took_s < limit_s, "64 descriptors: /health behind 200 idle connections",
                     f"{answer and answer.status} after {took_s:.1f} s", f"200 within {limit_s} s: idle ones are let go in turn")
            run.line(server.process.poll() is None, "64 descriptors: the process", "alive" if server.process.poll() is None else "DEAD", "alive")
            lines = server.log_text().count("\n")
            run.line(lines < 1000, "64 descriptors: the log", f"{lines} lines", "under 1000")
        descriptors_return(run, server, before, "64 descriptors")
        run.unharmed(server, "64 descriptors")


# Disks and stores.


@case
def full_log(run: Run):
    """Whatever is logged meets a full disk."""
    with open("/dev/full", "wb") as full, Server([MODEL], output=full) as server:
        run.unharmed(server, "log on a full disk")
        stop(run, server, "log on a full disk: SIGTERM", within_s=5)


@case
def closed_log(run: Run):
    """The log goes into a pipe that nobody reads any more."""
    reading, writing = os.pipe()
    with os.fdopen(writing, "wb") as pipe:
        server = Server([MODEL], output=pipe)
    with server:
        os.close(reading)
        run.unharmed(server, "log into a closed pipe")
        stop(run, server, "log into a closed pipe: SIGTERM", within_s=5)


@contextlib.contextmanager
def small_disk(size_bytes: int):
    """A file system of this size; None where none can be mounted."""
    with tempfile.TemporaryDirectory(prefix="small-disk-") as folder:
        options = ["-o", f"size={size_bytes}", "-t", "tmpfs", "tmpfs", folder]
        mounted = subprocess.run(["mount", *options], capture_output=True, check=False).returncode == 0
        try:
            yield Path(folder) if mounted else None
        finally:
            if mounted:
                subprocess.run(["umount", folder], check=False)


@case
def full_disk(run: Run):
    """Pictures by url, until the disk that they are kept on is full."""
    if not knows_setting("pictures.store"):
        return run.report.skip("full disk", "this program keeps pictures by url in memory only (no setting pictures.store)")
    with small_disk(256 << 10) as disk, tempfile.TemporaryDirectory(prefix="pictures-") as folder:
        # Without the right to mount: a file may not grow beyond this.
        limits = [] if disk else [(resource.RLIMIT_FSIZE, 8 << 10)]
        settings = {"DIFFUSER_PICTURES_STORE": f"file://{disk or folder}"}
        devnull = open(os.devnull, "wb")  # noqa: SIM115: the log may not grow, either.
        with devnull, Server([MODEL], settings, limits, devnull) as server:
            answers = [edit(server, wish(seed=seed, response_format="url", size="256x256")) for seed in range(20)]
            store_fails(run, server, answers, "full disk")
            run.unharmed(server, "full disk")


@case
def store_down(run: Run):
    """A store behind a port that nobody listens on."""
    if not knows_setting("pictures.store"):
        return run.report.skip("store down", "this program has no setting pictures.store")
    settings = {
        "DIFFUSER_PICTURES_STORE": "s3://pictures/here",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{client.free_port()}", "AWS_ALLOW_HTTP": "true", "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "nobody", "AWS_SECRET_ACCESS_KEY": "nothing",
    }
    with Server([MODEL], settings) as server:
        begun = time.monotonic()
        with concurrent.futures.ThreadPoolExecutor(3) as pool:
            asked = [pool.submit(edit, server, wish(seed=seed, response_format="url")) for seed in range(3)]
            time.sleep(0.5)
            health_answers(run, server, "store down")
            answers = [one.result() for one in asked]
        took_s = time.monotonic() - begun
        run.line(took_s < 60, "store down: time to tell", f"{took_s:.1f} s", "under a minute")
        store_fails(run, server, answers, "store down")
        run.unharmed(server, "store down")


def store_fails(run: Run, server: Server, answers, what: str):
    """Some were refused, with a clear code; pictures in the reply itself are made all the same."""
    refused = [answer for answer in answers if answer.status != 200]
    told = sorted({(answer.status, answer.json()["error"]["code"]) for answer in refused}, key=str)
    are_clear = bool(refused) and all(status in (503, 507) and code for status, code in told)
    run.line(are_clear, f"{what}: by url", f"{len(refused)} of {len(answers)} refused: {told}", "503 (or 507) with a code")
    status = edit(server, wish()).status
    run.line(status == 200, f"{what}: in the reply", status, "200")


# Signals.


def stop(run: Run, server: Server, what: str, within_s: float, right_code=0):
    """SIGTERM, and the process ends in time, with this exit status."""
    begun = time.monotonic()
    server.process.send_signal(signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        server.process.wait(within_s + 20)
    took_s, code = time.monotonic() - begun, server.process.poll()
    run.line(code == right_code and took_s < within_s, what, f"exit status {code} after {took_s:.1f} s", f"{right_code} within {within_s} s")


@case
def sigterm_idle(run: Run):
    with Server([MODEL]) as server:
        keep_alive = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
        with left_alone([client.Raw(server.port, data) for data in (b"", b"GET /he", keep_alive)]):
            time.sleep(0.3)
            stop(run, server, "SIGTERM, idle, with connections that say nothing", within_s=5)


@case
def sigterm_running_and_queued(run: Run):
    """One runs, three wait, a fourth comes afterwards, and one streams."""
    with Server([MODEL]) as server:
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            running = pool.submit(edit, server, long_wish(size="512x512", num_inference_steps=40, stream="true", partial_images=1))
            server.wait_until(server.is_busy, 10)
            waiting = [pool.submit(edit, server, long_wish(seed=seed)) for seed in range(3)]

            def three_wait():
                return server.health()["waiting"] == 3

            server.wait_until(three_wait, 10)
            stopping = threading.Thread(target=stop, args=(run, server, "SIGTERM, one running, three waiting", 60))
            stopping.start()
            refused = [one.result() for one in waiting]
            answer = running.result()
            stopping.join()
        told = [(one.status, one.headers.get("retry-after")) for one in refused]
        run.line(all(status == 503 and after for status, after in told), "SIGTERM: those that waited", told, "503 with Retry-After")
        last = [name for name, _ in answer.events()][-1:]
        run.line(answer.status == 200 and last == ["image_edit.completed"], "SIGTERM: the one that ran", f"{answer.status}, {last}", "finished")


@case
def sigterm_twice(run: Run):
    with Server([MODEL]) as server:
        with left_alone([client.Raw(server.port, edit_bytes(long_wish(num_inference_steps=150)))]):
            server.wait_until(server.is_busy, 10)
            server.process.send_signal(signal.SIGTERM)
            time.sleep(0.5)
            stop(run, server, "SIGTERM twice", within_s=2, right_code=130)


def main():
    names = sys.argv[1:] or list(CASES)
    unknown = [name for name in names if name not in CASES]
    if unknown:
        sys.exit(f"no such case: {', '.join(unknown)}; there are {', '.join(CASES)}")
    run = Run()
    for name in names:
        try:
            CASES[name](run)
        except (OSError, RuntimeError, client.BrokenAnswer) as error:
            run.line(False, name, f"{type(error).__name__}: {error}", "the case runs to its end")
    run.report.end()


if __name__ == "__main__":
    main()
