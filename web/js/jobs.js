// The way of a request through the server: sent as a job, followed by its events, and found
// again by a page that was closed meanwhile.
import { events, Fault, json, send } from "./api.js";
import * as database from "./database.js";
import { fromBase64 } from "./files.js";
import { store } from "./store.js";

/** How long to wait before asking again after a connection broke, in milliseconds. */
const PAUSE_MS = 1000;
/** How many unfinished pictures to ask for: the most that the server shows. */
export const PREVIEWS = 3;

let following = null;

/** Sends a request: `{ path, body, headers }`. The id of the job that it becomes. */
export async function submit(request, signal) {
  const job = await json(request.path, {
    method: "POST",
    body: request.body,
    headers: request.headers,
    signal,
  });
  return job;
}

/** Follows a job to its end, telling the page how far it is. What it came to: the reply. */
export async function follow(id) {
  const control = new AbortController();
  following = { id, control };
  const path = `${store.get("server").jobs}/${id}`;
  let last = null;
  try {
    for (;;) {
      const headers = { Accept: "text/event-stream" };
      if (last) headers["Last-Event-ID"] = last;
      try {
        const stream = await send(`${path}/events`, { headers, signal: control.signal });
        for await (const event of events(stream)) {
          last = event.id ?? last;
          const end = heed(event);
          if (end) return await resultOf(path, end, control.signal);
        }
      } catch (error) {
        // What the server refuses it refuses again; a connection comes back.
        if (error instanceof Fault || error.name === "AbortError") throw error;
      }
      await new Promise((resolve) => setTimeout(resolve, PAUSE_MS));
    }
  } finally {
    if (following?.id === id) following = null;
  }
}

/** Notes what an event tells. The job, if it has ended. */
function heed({ name, data }) {
  const told = JSON.parse(data);
  const job = store.get("job");
  if (name === "partial_image") {
    const preview = URL.createObjectURL(fromBase64(told.b64_json, `image/${told.output_format}`));
    // The last one is seen until this one has been read.
    const { preview: last } = job;
    if (last) setTimeout(() => URL.revokeObjectURL(last), 5000);
    store.set({ job: { ...job, preview } });
    return null;
  }
  if (name === "completed" || name === "failed" || name === "cancelled") return told;
  const { status, position, picture, step, total, eta_ms: leftMs, seeds, warnings } = told;
  const toldAt = performance.now();
  store.set({
    job: { ...job, status, position, picture, step, total, leftMs, toldAt, count: seeds.length, warnings },
  });
  return null;
}

async function resultOf(path, job, signal) {
  if (job.status === "cancelled") return null;
  if (job.status === "failed") throw new Fault({ ...job.error, status: 500 });
  return json(`${path}/result`, { signal });
}

/** Calls the job off that is followed. */
export async function cancel() {
  const current = following;
  if (!current) return;
  await send(`${store.get("server").jobs}/${current.id}`, { method: "DELETE" }).catch(() => {});
  await database.forgetJob(current.id);
}
