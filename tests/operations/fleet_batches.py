"""What gateways promise of files and batches that they share: each function is a promise. `fleet.py` calls them."""

import base64
import contextlib
import json
import os
import signal
import time

import client
from waiting import until

PICTURE = "data:image/png;base64," + base64.b64encode(client.picture(96, 64)).decode()
EDITS = "/v1/images/edits"
BODY = {"prompt": "make it red", "num_inference_steps": 4, "size": "64x64", "images": [{"image_url": PICTURE}]}
# Some hundred milliseconds in a build without optimisation.
SLOW = {**BODY, "num_inference_steps": 12, "size": "128x128"}
OVER = ("completed", "failed", "expired", "cancelled")
LEASE_S = 15
LOOK_S = 5
# What is told is known at once; what is not is found out within a look.
TOLD_S = 2
# More than a part of an upload.
LARGE = bytes(range(256)) * (12 << 12)


def lines(count: int, body=BODY, **more) -> bytes:
    """Requests named after their seeds."""
    of = [{"custom_id": str(seed), "method": "POST", "url": EDITS, "body": {**body, "seed": seed, **more}} for seed in range(count)]
    return "".join(json.dumps(line) + "\n" for line in of).encode()


def upload(port: int, content: bytes) -> client.Answer:
    return client.post_form(port, "/v1/files", {"purpose": "batch"}, [("file", content)])


def create(port: int, file: str) -> client.Answer:
    return client.post_json(port, "/v1/batches", {"input_file_id": file, "endpoint": EDITS, "completion_window": "24h"})


def begin(port: int, content: bytes) -> str:
    return create(port, upload(port, content).json()["id"]).json()["id"]


def seen(port: int, batch: str) -> dict:
    with contextlib.suppress(OSError, client.BrokenAnswer):
        answer = client.get(port, f"/v1/batches/{batch}")
        return answer.json() if answer.status == 200 else {"status": answer.status}
    return {"status": None}


def over(port: int, batch: str, limit_s: float = 240) -> dict:
    return until(lambda: (found := seen(port, batch))["status"] in OVER and found, limit_s)


def has_begun(port: int, batch: str, completed: int) -> bool:
    return seen(port, batch).get("request_counts", {}).get("completed", 0) >= completed


def content(port: int, file: str) -> bytes:
    return client.get(port, f"/v1/files/{file}/content").body if file else b""


def pictures(port: int, batch: dict) -> dict:
    """By the names of their requests; a name that came twice has none."""
    found = {}
    for line in map(json.loads, content(port, batch["output_file_id"]).splitlines()):
        picture = line["response"]["body"]["data"][0]["b64_json"]
        found[line["custom_id"]] = None if line["custom_id"] in found else picture
    return found


def objects(engine, end: str) -> int:
    return len([*engine.files.rglob(f"*.{end}*")])


def a_batch_may_be_asked_for_anywhere(engine, gateway, other, single, report):
    """Sent to one gateway, made by another, seen by both; with what a single server makes of it."""
    requests = lines(6) + json.dumps({"custom_id": "wrong", "method": "POST", "url": EDITS, "body": {**BODY, "size": "1x"}}).encode()
    file = upload(gateway.port, requests).json()
    same = content(other.port, file["id"]) == requests and client.get(other.port, f"/v1/files/{file['id']}").json() == file
    report.line(same, "a file, of another gateway", file["bytes"], "as it was sent")
    created = create(other.port, file["id"])
    report.line(created.status == 200, "a batch of it there", created.status, 200)
    batch = over(gateway.port, created.json()["id"])
    alone = over(single.port, begin(single.port, requests))
    counts = batch["request_counts"]
    report.line((batch["status"], counts) == ("completed", {"total": 7, "completed": 6, "failed": 1}), "its end", counts, "6 and 1 of 7")
    through, direct = pictures(gateway.port, batch), pictures(single.port, alone)
    report.line(len(through) == 6 and through == direct, "its pictures", sorted(through), "a single server's, bit by bit")
    errors = [json.loads(content(server.port, of["error_file_id"]))["response"]["body"] for server, of in ((other, batch), (single, alone))]
    report.line(errors[0] == errors[1], "its error", errors[0]["error"]["param"], "a single server's")
    order = [line["custom_id"] for line in map(json.loads, content(other.port, batch["output_file_id"]).splitlines())]
    report.line(order == sorted(order), "the order of its lines", order, "that of the requests")
    report.line(objects(engine, "line") == 6, "objects of lines", objects(engine, "line"), "6: a short line is in its row")
    left = engine.ask("SELECT count(*) FROM diffuser_jobs WHERE is_patient")
    report.line(left == "0", "jobs of its lines that are left", left, 0)
    return file["id"], batch


def files_are_listed_and_removed_anywhere(engine, gateway, other, file, batch, report):
    listed = [[found["id"] for found in client.get(server.port, "/v1/files").json()["data"]] for server in (gateway, other)]
    wanted = sorted([file, batch["output_file_id"], batch["error_file_id"]], reverse=True)
    report.line(listed == [wanted] * 2, "files that both list", len(listed[0]), "the same three")
    pages, after = [], ""
    while True:
        page = client.get(other.port, f"/v1/files?limit=1&order=asc{after}").json()
        pages += [found["id"] for found in page["data"]]
        after = f"&after={page['last_id']}"
        if not page["has_more"]:
            break
    report.line(pages == wanted[::-1], "page by page, the first ones first", len(pages), 3)
    outputs = client.get(other.port, "/v1/files?purpose=batch_output").json()["data"]
    report.line(len(outputs) == 2, "those of one purpose", len(outputs), 2)
    removed = [client.exchange(other.port, "DELETE", f"/v1/files/{found}").status for found in wanted]
    gone = [client.get(gateway.port, f"/v1/files/{found}").status for found in wanted]
    report.line((removed, gone) == ([200] * 3, [404] * 3), "removed there, gone here", (removed, gone), "200 and 404")
    rows = engine.ask("SELECT count(*) FROM diffuser_batch_lines")
    report.line(rows == "0", "rows of their lines", rows, 0)
    until(lambda: objects(engine, "line") + objects(engine, "file") == 0, 20)
    report.line(True, "their objects", 0, 0)


def a_large_file_is_whole_and_one_that_breaks_off_leaves_nothing(engine, fleet, gateway, other, report):
    file = upload(gateway.port, LARGE).json()
    whole = content(other.port, file["id"]) == LARGE
    report.line(whole, "a file of several parts, of another gateway", file["bytes"], "as it was sent")
    body, headers = client.form({"purpose": "batch"}, [("file", LARGE)])
    leaving = client.Raw(gateway.port)
    leaving.socket.settimeout(60)
    leaving.send(client.request_bytes("POST", "/v1/files", body, headers)[:len(LARGE) * 3 // 4])
    until(lambda: objects(engine, "file") == 2, 20)
    leaving.close()
    until(lambda: objects(engine, "file") == 1, 20)
    report.line(True, "objects, once a client has left in the middle of an upload", 1, "the first file's")
    with fleet.start("gateway", DIFFUSER_JOBS_MAX_BYTES=str(2 * len(LARGE) - 1)) as narrow:
        refused = upload(narrow.port, LARGE)
        code = refused.json()["error"]["code"]
        report.line((refused.status, code) == (503, "storage_unavailable"), "a file that has no room", (refused.status, code), 503)
    until(lambda: objects(engine, "file") == 1, 20)
    report.line(client.exchange(other.port, "DELETE", f"/v1/files/{file['id']}").status == 200, "removed", 200, 200)


def a_file_in_use_stays_and_a_batch_is_cancelled_anywhere(gateway, other, report):
    file = upload(gateway.port, lines(40, SLOW)).json()["id"]
    batch = create(gateway.port, file).json()["id"]
    until(lambda: has_begun(other.port, batch, 1))
    refused = client.exchange(other.port, "DELETE", f"/v1/files/{file}")
    report.line(refused.status == 409, "removing a file in use", refused.status, 409)
    begun = time.monotonic()
    cancelled = client.post_json(other.port, f"/v1/batches/{batch}/cancel", {}).json()["status"]
    ended = over(gateway.port, batch)
    took_s = time.monotonic() - begun
    report.line(cancelled in ("cancelling", "cancelled") and ended["status"] == "cancelled", "cancelled at another gateway",
                (cancelled, ended["status"]), "cancelling, cancelled")
    report.line(took_s < TOLD_S, "how long that took", f"{took_s:.1f} s", "told, and not found out")
    counts = ended["request_counts"]
    written = [len(content(other.port, ended[name]).splitlines()) for name in ("output_file_id", "error_file_id")]
    holds = written == [counts["completed"], counts["failed"]] and sum(written) == 40 and 0 < written[0] < 40
    report.line(holds, "what is in its files", written, "40 lines, what was done by then as output")
    removed = client.exchange(other.port, "DELETE", f"/v1/files/{file}").status
    report.line(removed == 200, "removing the file then", removed, 200)


def batches_are_listed_anywhere(gateway, other, report):
    ids, after = [], ""
    while True:
        page = client.get(other.port, f"/v1/batches?limit=1{after}").json()
        ids += [batch["id"] for batch in page["data"]]
        after = f"&after={page['last_id']}"
        if not page["has_more"]:
            break
    whole = [batch["id"] for batch in client.get(gateway.port, "/v1/batches?limit=100").json()["data"]]
    report.line(ids == whole == sorted(ids, reverse=True) and len(ids) > 1, "batches, page by page", len(ids), "all, the latest first")


def driver_of(engine, batch: str) -> str:
    return engine.ask(f"SELECT driver FROM diffuser_batches WHERE id = '{batch}'")


def look_at(report, other, batch: str, count: int, expected: dict, what: str):
    ended = over(other.port, batch)
    found = pictures(other.port, ended)
    holds = ended["status"] == "completed" and len(found) == count and found == expected
    report.line(holds, f"a batch whose gateway {what}", (ended["status"], len(found)), f"completed, each of {count} once, as a single server's")


def a_lost_gateway_is_replaced(engine, fleet, other, single, report):
    """Killed in the middle of a batch, cut off for longer than its lease, ended in good order."""
    count = 30
    requests = lines(count, SLOW)
    expected = pictures(single.port, over(single.port, begin(single.port, requests)))

    lost = fleet.start("gateway")
    batch = begin(lost.port, requests)
    until(lambda: has_begun(other.port, batch, 3))
    first = driver_of(engine, batch)
    lost.process.kill()
    begun = time.monotonic()
    until(lambda: driver_of(engine, batch) != first, 60)
    took_s = time.monotonic() - begun
    report.line(took_s < LEASE_S + LOOK_S + 5, "until another gateway has its batch", f"{took_s:.1f} s", "a lease, and a look")
    look_at(report, other, batch, count, expected, "was killed")

    cut_off = fleet.start("gateway")
    batch = begin(cut_off.port, requests)
    until(lambda: has_begun(other.port, batch, 3))
    first = driver_of(engine, batch)
    cut_off.process.send_signal(signal.SIGSTOP)
    until(lambda: driver_of(engine, batch) != first, 60)
    cut_off.process.send_signal(signal.SIGCONT)
    second = driver_of(engine, batch)
    until(lambda: "another process sees to the batch" in cut_off.log_text(), 30)
    report.line(driver_of(engine, batch) == second != first, "whose it is when the first one is back", "the other's", "the other's")
    look_at(report, other, batch, count, expected, "was cut off")

    batch = begin(cut_off.port, requests)
    until(lambda: has_begun(other.port, batch, 3))
    cut_off.end()
    begun = time.monotonic()
    until(lambda: driver_of(engine, batch) not in ("", first), 60)
    took_s = time.monotonic() - begun
    report.line(took_s < TOLD_S, "until another one has it that was given back", f"{took_s:.1f} s", "told, and not found out")
    look_at(report, other, batch, count, expected, "ended in good order")


def what_rows_name_is_not_swept_up(engine, fleet, gateway, report):
    """Whoever starts looks for objects that no row names: here all look two hours old."""
    file = upload(gateway.port, lines(1)).json()["id"]
    batch = over(gateway.port, create(gateway.port, file).json()["id"])
    # Processes that were killed have left others.
    tables = ("diffuser_files", "diffuser_batch_lines")
    named = " UNION ".join(f"SELECT object FROM {table} WHERE object IS NOT NULL" for table in tables)
    named = set(engine.ask(named).splitlines())
    strays = [engine.files / "jobs" / "abc" / name for name in ("stray.file", "stray.line")]
    strays[0].parent.mkdir(exist_ok=True)
    [stray.write_bytes(b"x") for stray in strays]
    old = time.time() - 7200
    [os.utime(found, (old, old)) for found in engine.files.rglob("*.*")]
    sweeping = fleet.start("gateway")
    until(lambda: not any(stray.exists() for stray in strays), 30)
    left = {str(found.relative_to(engine.files / "jobs")) for found in engine.files.rglob("*.*")}
    lost = sorted(named - left)
    report.line(named and not lost, f"of {len(named)} objects that rows name, gone after a sweep", lost, "none")
    whole = content(sweeping.port, file) == lines(1) and len(pictures(sweeping.port, batch)) == 1
    report.line(whole, "their content", whole, "there")
    sweeping.end()


def main(engine, fleet, gateway, other, single, report):
    file, batch = a_batch_may_be_asked_for_anywhere(engine, gateway, other, single, report)
    files_are_listed_and_removed_anywhere(engine, gateway, other, file, batch, report)
    a_large_file_is_whole_and_one_that_breaks_off_leaves_nothing(engine, fleet, gateway, other, report)
    a_file_in_use_stays_and_a_batch_is_cancelled_anywhere(gateway, other, report)
    batches_are_listed_anywhere(gateway, other, report)
    a_lost_gateway_is_replaced(engine, fleet, other, single, report)
    what_rows_name_is_not_swept_up(engine, fleet, gateway, report)
