"""What gateways and workers promise, held against a real PostgreSQL: each function is a promise."""

import base64
import contextlib
import http.server
import json
import os
import signal
import socket
import threading
import time

import client
import fleet_batches
import websockets.sync.client
from cable import HERE, laid
from engine import Engine
from report import Report
from server import Server
from standardwebhooks import Webhook
from waiting import until

FILES = [("image", client.picture(96, 64))]
QUICK = {"prompt": "make it red", "seed": "7", "num_inference_steps": "4", "size": "64x64"}
# Long enough to be interrupted, in a build without optimisation, too.
LONG = {"prompt": "make it red", "seed": "8", "num_inference_steps": "40", "size": "384x384"}
EDITS = "/v1/images/edits"
LEASE_S = 15


class Fleet:
    def __init__(self, engine, settings):
        self.engine = engine
        self.settings = {**engine.settings, **settings}
        self.stack = contextlib.ExitStack()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stack.close()

    def start(self, role: str, ready=True, command=(), models=("tiny-random",), **settings) -> Server:
        settings = {**self.settings, "DIFFUSER_ROLE": role, "DIFFUSER_THREADS": "1", **settings}
        server = Server(models=models if role == "worker" else (), settings=settings, command=command)
        self.stack.callback(server.end)
        if ready:
            server.wait_until(server.is_ready, 120)
        return server


def edit(port: int, fields: dict, **more) -> client.Answer:
    return client.post_form(port, EDITS, {**fields, **more}, FILES)


def shown(answer: client.Answer) -> str:
    return f"{answer.status} {answer.body[:200]!r}"


def a_plain_request_is_answered_as_by_a_single_server(gateway, single, report):
    through, direct = edit(gateway.port, QUICK), edit(single.port, QUICK)
    same = through.status == 200 and through.picture() == direct.picture()
    report.line(same, "a plain edit through a gateway", shown(through)[:60], "a single server's picture, bit by bit")
    keys = [sorted(answer.json()) for answer in (through, direct)]
    report.line(keys[0] == keys[1], "the fields of its reply", keys[0], "the same")


def a_file_is_answered_as_a_file(gateway, single, report):
    answers = [client.post_form(server.port, EDITS, QUICK, FILES, headers={"Accept": "image/png"}) for server in (gateway, single)]
    types = [answer.headers["content-type"] for answer in answers]
    same = answers[0].body == answers[1].body and types == ["image/png"] * 2
    report.line(same, "a reply as a file", types, "the same file")


def a_stream_has_its_previews(gateway, single, report):
    fields = {**QUICK, "stream": "true", "partial_images": "2"}
    through, direct = ([*edit(server.port, fields).events()] for server in (gateway, single))
    pictures = [[(name, data.get("b64_json")) for name, data in events] for events in (through, direct)]
    names = [name for name, _ in through]
    wanted = ["image_edit.partial_image"] * 2 + ["image_edit.completed"]
    report.line(names == wanted, "events of a stream through a gateway", names, wanted)
    report.line(pictures[0] == pictures[1], "their pictures", len(pictures[0]), "a single server's")


def faults_are_told_by_the_gateway(gateway, report):
    wrong = edit(gateway.port, QUICK, num_inference_steps="0")
    told = wrong.status == 400 and wrong.json()["error"]["param"] == "num_inference_steps"
    report.line(told, "a wrong parameter", shown(wrong)[:120], "400, with its name")
    unknown = edit(gateway.port, QUICK, model="other/model")
    report.line(unknown.status == 404, "an unknown model", unknown.status, 404)
    later = edit(gateway.port, QUICK, num_inference_steps="0", background="true")
    report.line(later.status == 400, "a wrong parameter of a job", later.status, 400)
    load = client.post_json(gateway.port, "/v1/models/tiny-random/load", {})
    report.line(load.status in (403, 501), "loading a model of a gateway", load.status, "403 or 501")


def a_job_may_be_asked_for_anywhere(gateway, other, report):
    job = edit(gateway.port, QUICK, background="true").json()["id"]
    until(lambda: client.get(other.port, f"/v1/jobs/{job}").json()["status"] == "succeeded")
    result = client.get(other.port, f"/v1/jobs/{job}/result")
    report.line(result.status == 200, "a job's result, of another gateway", result.status, 200)
    events = [name for name, _ in client.get(other.port, f"/v1/jobs/{job}/events").events()]
    report.line(events == ["completed"], "its events", events, ["completed"])
    removed = client.exchange(other.port, "DELETE", f"/v1/jobs/{job}")
    gone = client.get(gateway.port, f"/v1/jobs/{job}")
    report.line((removed.status, gone.status) == (200, 404), "removed there, gone here", (removed.status, gone.status), (200, 404))


def a_socket_at_a_gateway_is_served_by_a_worker(gateway, single, report):
    """Two requests at once: one with previews, one that is called off."""
    heard = {"wanted": [], "unwanted": []}
    body = {**{name: value for name, value in LONG.items() if name != "num_inference_steps"}, "num_inference_steps": 40,
            "images": [{"image_url": "data:image/png;base64," + base64.b64encode(FILES[0][1]).decode()}], "seed": int(LONG["seed"])}
    with websockets.sync.client.connect(f"ws://127.0.0.1:{gateway.port}/v1/realtime/images", max_size=None) as socket:
        for name in heard:
            message = {"type": "image.create", "id": name, "endpoint": "edits", "body": {**body, "partial_images": 2}}
            socket.send(json.dumps(message))
        socket.send(json.dumps({"type": "image.cancel", "id": "unwanted"}))
        while not {"image.completed", "image.failed"} & {message["type"] for message in heard["wanted"]}:
            message = json.loads(socket.recv(timeout=300))
            heard.get(message.get("id"), []).append(message)
    kinds = {name: [message["type"] for message in of] for name, of in heard.items()}
    seen = sorted({*kinds["wanted"]})
    wanted = ["image.completed", "image.partial_image", "image.progress", "image.queued"]
    report.line(seen == wanted, "what a socket at a gateway tells", seen, wanted)
    report.line(kinds["unwanted"][-1] == "image.cancelled", "a request that was called off", kinds["unwanted"], "cancelled")
    picture = heard["wanted"][-1].get("response", {}).get("data", [{}])[0].get("b64_json")
    same = picture == edit(single.port, LONG).picture()
    report.line(same, "its picture", len(heard["wanted"]), "a single server's")


def a_socket_knows_models_that_came_later(fleet, gateway, report):
    body = {"prompt": "make it red", "model": "demo", "num_inference_steps": 0, "images": [{"image_url": "data:image/png;base64,"
            + base64.b64encode(FILES[0][1]).decode()}]}
    with websockets.sync.client.connect(f"ws://127.0.0.1:{gateway.port}/v1/realtime/images") as socket:
        socket.recv()
        later = fleet.start("worker", models=("demo",))
        until(lambda: "demo" in [model["id"] for model in client.get(gateway.port, "/v1/models").json()["data"]])
        socket.send(json.dumps({"type": "image.create", "id": "a", "endpoint": "edits", "body": body}))
        refused = json.loads(socket.recv(timeout=60))
    param = refused.get("error", {}).get("param")
    report.line(param == "num_inference_steps", "what a socket says of a model that came later", param, "its fault, and not that it is unknown")
    later.end()


def previews_of_a_job_are_seen_by_every_gateway(gateway, other, report):
    job = edit(gateway.port, LONG, background="true", partial_images="2").json()["id"]
    events = [*client.get(other.port, f"/v1/jobs/{job}/events").events()]
    previews = [data for name, data in events if name == "partial_image"]
    holds = len(previews) == 2 and all(preview["type"] == "image_edit.partial_image" for preview in previews)
    report.line(holds, "unfinished pictures that another gateway shows", len(previews), 2)


class Hook(http.server.BaseHTTPRequestHandler):
    """Takes messages."""

    received = []

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        self.received.append((self.headers, body))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_):
        pass


def the_end_of_a_job_is_told_once(gateway, hooks, report):
    jobs = [edit(gateway.port, {**QUICK, "seed": str(seed)}, background="true").json()["id"] for seed in range(6)]
    [until(lambda job=job: ended(gateway, job)) for job in jobs]
    told = lambda: [json.loads(body)["data"]["id"] for _, body in Hook.received]  # noqa: E731
    until(lambda: set(jobs) <= set(told()), 20)
    time.sleep(2)
    times = [told().count(job) for job in jobs]
    report.line(times == [1] * len(jobs), "how often each job's end was told, of five processes", times, "once each")
    for headers, body in Hook.received:
        Webhook(hooks["DIFFUSER_WEBHOOK_SECRET"]).verify(body, dict(headers.items()))
    report.line(True, "their signatures", len(Hook.received), "those of Standard Webhooks")


def who_leaves_takes_the_work_along(engine, gateway, worker, report):
    body, headers = client.form(LONG, FILES)
    leaving = client.Raw(gateway.port, client.request_bytes("POST", EDITS, body, headers))
    until(lambda: engine.ask("SELECT count(*) FROM diffuser_jobs WHERE state = 'running'") == "1")
    leaving.close()
    begun = time.monotonic()
    until(lambda: engine.ask("SELECT count(*) FROM diffuser_jobs WHERE state IN ('queued', 'running')") == "0")
    until(worker.is_idle)
    left_s = time.monotonic() - begun
    report.line(left_s < 10, "the worker idle after its client has left", f"{left_s:.1f} s", "10 s at most")


def who_leaves_while_the_job_is_stored_takes_it_along(engine, gateway, report):
    body, headers = client.form(QUICK, FILES)
    unfinished = "SELECT count(*) FROM diffuser_jobs WHERE state IN ('queued', 'running')"
    with engine.slow("diffuser_jobs", 2):
        leaving = client.Raw(gateway.port, client.request_bytes("POST", EDITS, body, headers))
        until(lambda: engine.ask("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'") == "1")
        leaving.close()
    begun = time.monotonic()
    until(lambda: engine.ask("SELECT count(*) FROM diffuser_jobs WHERE is_attached") == "0" and engine.ask(unfinished) == "0")
    left_s = time.monotonic() - begun
    report.line(left_s < 8, "a job whose client left while it was stored", f"gone after {left_s:.1f} s", "8 s at most")


def a_cancelled_job_stops_its_worker(engine, gateway, other, worker, report):
    job = edit(gateway.port, LONG, background="true").json()["id"]
    until(lambda: client.get(gateway.port, f"/v1/jobs/{job}").json()["step"])
    begun = time.monotonic()
    cancelled = client.exchange(other.port, "DELETE", f"/v1/jobs/{job}").json()["status"]
    until(worker.is_idle)
    took_s = time.monotonic() - begun
    result = client.get(gateway.port, f"/v1/jobs/{job}/result").status
    holds = (cancelled, result) == ("cancelled", 409) and took_s < 10
    report.line(holds, "cancelled by another gateway", f"{cancelled}, {result}, {took_s:.1f} s", "no result, 10 s at most")


def progress_is_seen_by_every_gateway(gateway, other, report):
    job = edit(gateway.port, LONG, background="true").json()["id"]
    steps = {data["step"] for _, data in client.get(other.port, f"/v1/jobs/{job}/events").events()}
    report.line(len(steps) > 3, "steps that another gateway tells of", sorted(steps, key=str), "several")


def a_lost_worker_is_replaced(fleet, gateway, worker, single, report):
    """In the middle of a stream: the client has its previews once, and the picture."""
    spare = None
    body, headers = client.form({**LONG, "stream": "true", "partial_images": "3"}, FILES)
    streaming = socket.create_connection(("127.0.0.1", gateway.port), 300)
    streaming.sendall(client.request_bytes("POST", EDITS, body, headers))
    received = bytearray()
    while chunk := streaming.recv(1 << 16):
        received += chunk
        if spare is None and b"image_edit.partial_image" in received:
            worker.process.send_signal(signal.SIGKILL)
            worker.process.wait()
            spare = fleet.start("worker")
    events = [*client.parse(bytes(received)).events()]
    names = [name for name, _ in events]
    wanted = ["image_edit.partial_image"] * 3 + ["image_edit.completed"]
    report.line(names == wanted, "a stream whose worker was killed", names, wanted)
    same = events[-1][1].get("b64_json") == edit(single.port, LONG).picture()
    report.line(same, "its picture", len(events), "a single server's")
    return spare


def a_worker_that_was_cut_off_is_too_late(engine, fleet, gateway, worker, single, report):
    """It hears and says nothing for longer than its lease, and then goes on as if nothing had been."""
    job = edit(gateway.port, LONG, background="true").json()["id"]
    until(lambda: client.get(gateway.port, f"/v1/jobs/{job}").json()["step"])
    worker.process.send_signal(signal.SIGSTOP)
    spare = fleet.start("worker")
    until(lambda: client.get(gateway.port, f"/v1/jobs/{job}").json()["status"] == "succeeded", 300)
    worker.process.send_signal(signal.SIGCONT)
    until(worker.is_idle)
    time.sleep(1)
    seen = client.get(gateway.port, f"/v1/jobs/{job}").json()
    picture = client.get(gateway.port, f"/v1/jobs/{job}/result").picture()
    right = seen["tries"] == 2 and picture == edit(single.port, LONG).picture()
    report.line(right, "a job whose worker was cut off", f"{seen['status']}, {seen['tries']} tries", "succeeded, 2 tries, the picture")
    results = engine.ask(f"SELECT count(*) FROM diffuser_jobs WHERE id = '{job}' AND result IS NOT NULL")
    objects = len([*engine.files.rglob(f"{job}*.result")])
    report.line((results, objects) == ("1", 1), "results of it", (results, objects), "one")
    return spare


def a_worker_without_a_network_is_too_late(engine, fleet, cable, gateway, worker, single, report):
    """It goes on with what it has, and what it brings once it is back is worth nothing."""
    worker.end()
    far = fleet.start("worker", ready=False, command=cable.command, DIFFUSER_JOBS_STORE=engine.url_at(HERE))
    job = edit(gateway.port, LONG, background="true").json()["id"]
    until(lambda: client.get(gateway.port, f"/v1/jobs/{job}").json()["step"])
    cable.cut()
    spare = fleet.start("worker")
    seen = until(lambda: ended(gateway, job), 300)
    cable.mend()
    until(lambda: "the outcome is discarded" in far.log_text() or "called off, or somebody else" in far.log_text(), 120)
    seen_again = client.get(gateway.port, f"/v1/jobs/{job}").json()
    picture = client.get(gateway.port, f"/v1/jobs/{job}/result").picture()
    right = (seen["status"], seen["tries"]) == ("succeeded", 2) and seen_again == seen and picture == edit(single.port, LONG).picture()
    report.line(right, "a job whose worker lost its network", f"{seen['status']}, {seen['tries']} tries", "succeeded, 2 tries, the picture")
    objects = len([*engine.files.rglob(f"{job}*.result")])
    report.line(objects == 1, "results of it", objects, "one")
    far.end()
    return spare


def without_the_database_gateways_say_so_and_workers_hold_what_they_have(engine, gateway, worker, single, report):
    job = edit(gateway.port, LONG, background="true").json()["id"]
    until(lambda: client.get(gateway.port, f"/v1/jobs/{job}").json()["step"])
    engine.kill()
    refused = edit(gateway.port, QUICK, background="true")
    report.line(refused.status == 503, "a job without the database", shown(refused)[:120], 503)
    waiting = edit(gateway.port, QUICK)
    report.line(waiting.status == 503, "a plain request without it", waiting.status, 503)
    health, ready = (client.get(gateway.port, path) for path in ("/health", "/ready"))
    until(lambda: client.get(gateway.port, "/ready").status == 503)
    report.line(health.status == 200, "/health of the gateway", health.status, 200)
    until(worker.is_idle, 300)
    engine.start()
    until(lambda: client.get(gateway.port, "/ready").status == 200)
    seen = until(lambda: ended(gateway, job), 120)
    picture = client.get(gateway.port, f"/v1/jobs/{job}/result").picture()
    right = seen["status"] == "succeeded" and seen["tries"] == 1 and picture == edit(single.port, LONG).picture()
    report.line(right, "what the worker had held", f"{seen['status']}, {seen['tries']} tries", "succeeded, 1 try, the picture")


def reason(server):
    with contextlib.suppress(OSError):
        return client.get(server.port, "/ready").json().get("reason")
    return None


def ended(gateway, job):
    with contextlib.suppress(OSError, client.BrokenAnswer, KeyError, ValueError):
        seen = client.get(gateway.port, f"/v1/jobs/{job}").json()
        return seen if seen["status"] not in ("queued", "running") else None
    return None


def a_worker_that_ends_in_good_order_gives_back_what_waits(gateway, worker, report):
    jobs = [edit(gateway.port, QUICK, background="true", seed=str(seed)).json()["id"] for seed in range(4)]
    worker.end()
    left = [client.get(gateway.port, f"/v1/jobs/{job}").json() for job in jobs]
    report.line(all(job["status"] in ("queued", "succeeded") for job in left), "jobs of a worker that ended",
                [job["status"] for job in left], "done or waiting again")
    return jobs


def jobs_wait_for_a_worker(fleet, gateway, jobs, report):
    ready = client.get(gateway.port, "/ready").status
    accepted = edit(gateway.port, QUICK, background="true")
    report.line((ready, accepted.status) == (200, 202), "a job while there is no worker", (ready, accepted.status), (200, 202))
    worker = fleet.start("worker")
    jobs = [*jobs, accepted.json()["id"]]
    seen = [until(lambda job=job: ended(gateway, job)) for job in jobs]
    report.line(all(job["status"] == "succeeded" for job in seen), "they, once there is one", [job["status"] for job in seen], "succeeded")
    return worker


def a_lost_gateway_takes_its_clients_work_along(engine, fleet, worker, report):
    gateway = fleet.start("gateway")
    body, headers = client.form({**LONG, "num_inference_steps": "150", "n": "4"}, FILES)
    waiting = client.Raw(gateway.port, client.request_bytes("POST", EDITS, body, headers))
    until(lambda: engine.ask("SELECT count(*) FROM diffuser_jobs WHERE state = 'running'") == "1")
    gateway.process.kill()
    waiting.close()
    begun = time.monotonic()
    until(lambda: engine.ask("SELECT count(*) FROM diffuser_jobs WHERE is_attached") == "0", 60)
    until(worker.is_idle)
    took_s = time.monotonic() - begun
    report.line(took_s < 2 * LEASE_S + 10, "work of a gateway that was killed", f"called off after {took_s:.1f} s", "two leases at most")


def an_idempotency_key_is_one_job_at_any_gateway(gateway, other, report):
    name = {"Idempotency-Key": "a name"}
    fields = {**QUICK, "background": "true"}
    answers = []

    def send(port):
        answers.append(client.post_form(port, EDITS, fields, FILES, headers=name))

    sending = [threading.Thread(target=send, args=(server.port,)) for server in (gateway, other) for _ in range(4)]
    [thread.start() for thread in sending]
    [thread.join() for thread in sending]
    ids = {answer.json().get("id") for answer in answers}
    report.line(len(ids) == 1 and None not in ids, "eight requests of one name", ids, "one job")
    changed = client.post_form(other.port, EDITS, {**fields, "seed": "1"}, FILES, headers=name)
    report.line(changed.status == 422, "another request by that name", changed.status, 422)


def metrics_tell_of_the_lines(gateway, report):
    text = client.get(gateway.port, "/metrics").body.decode()
    lines = [line for line in text.splitlines() if line.startswith("diffuser_jobs_")]
    report.line(any("tiny-random" in line for line in lines), "the lines in a gateway's metrics", lines[:3], "by model")


def main():
    report = Report()
    receiver = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hook)
    threading.Thread(target=receiver.serve_forever, daemon=True).start()
    hooks = {
        "DIFFUSER_WEBHOOK_URL": f"http://127.0.0.1:{receiver.server_port}/hook",
        "DIFFUSER_WEBHOOK_SECRET": "whsec_" + base64.b64encode(os.urandom(32)).decode(),
        "DIFFUSER_WEBHOOK_ALLOW_PRIVATE": "true",
    }
    with laid() as cable:
        hold_all(cable, hooks, report)
    report.end()


def hold_all(cable, hooks, report):
    with Engine(also=HERE if cable else None) as engine, Fleet(engine, hooks) as fleet, Server(settings={"DIFFUSER_THREADS": "1"}) as single:
        print(engine.version())
        gateway = fleet.start("gateway", ready=False)
        until(lambda: reason(gateway) == "waiting_for_workers")
        worker = fleet.start("worker")
        until(gateway.is_ready)
        other = fleet.start("gateway")
        a_plain_request_is_answered_as_by_a_single_server(gateway, single, report)
        a_file_is_answered_as_a_file(gateway, single, report)
        a_stream_has_its_previews(gateway, single, report)
        faults_are_told_by_the_gateway(gateway, report)
        a_job_may_be_asked_for_anywhere(gateway, other, report)
        an_idempotency_key_is_one_job_at_any_gateway(gateway, other, report)
        who_leaves_takes_the_work_along(engine, gateway, worker, report)
        who_leaves_while_the_job_is_stored_takes_it_along(engine, gateway, report)
        a_cancelled_job_stops_its_worker(engine, gateway, other, worker, report)
        progress_is_seen_by_every_gateway(gateway, other, report)
        a_socket_at_a_gateway_is_served_by_a_worker(gateway, single, report)
        previews_of_a_job_are_seen_by_every_gateway(gateway, other, report)
        the_end_of_a_job_is_told_once(gateway, hooks, report)
        metrics_tell_of_the_lines(gateway, report)
        fleet_batches.main(engine, fleet, gateway, other, single, report)
        worker = a_lost_worker_is_replaced(fleet, gateway, worker, single, report)
        spare = a_worker_that_was_cut_off_is_too_late(engine, fleet, gateway, worker, single, report)
        spare.end()
        if cable:
            worker = a_worker_without_a_network_is_too_late(engine, fleet, cable, gateway, worker, single, report)
        else:
            report.skip("a worker without a network", "no network of its own is allowed here")
        without_the_database_gateways_say_so_and_workers_hold_what_they_have(engine, gateway, worker, single, report)
        jobs = a_worker_that_ends_in_good_order_gives_back_what_waits(gateway, worker, report)
        worker = jobs_wait_for_a_worker(fleet, gateway, jobs, report)
        a_lost_gateway_takes_its_clients_work_along(engine, fleet, worker, report)
        # The last one: its model stays known.
        a_socket_knows_models_that_came_later(fleet, gateway, report)


if __name__ == "__main__":
    main()
