// From *Go* to a picture: sends what the controls say, follows it, and shows what it came to.
import { Fault } from "./api.js";
import * as database from "./database.js";
import { announce } from "./dom.js";
import { endingOf, fromBase64, imageAt, newId, pictureOf, thumbnailOf } from "./files.js";
import { t } from "./i18n.js";
import { cancel as cancelJob, follow, submit } from "./jobs.js";
import { anySeed, orderOf, requestOf, seedOf } from "./request.js";
import { mostPictures } from "./schema.js";
import { store } from "./store.js";

let sending = null;

/** Makes what the controls ask for. */
export async function go() {
  if (store.get("job")) return;
  if (!store.get("isSeedLocked") || store.get("seed") === "") store.set({ seed: anySeed() });
  store.set({ faults: {}, warnings: {} });
  if (mostPictures() > 0 && store.get("pictures").length === 0) {
    store.set({ faults: { image: t("fault.noPicture") } });
    return;
  }
  const control = new AbortController();
  sending = control;
  store.set({ job: { status: "sending", startedAt: Date.now() } });
  try {
    const order = await orderOf();
    const job = await submit(requestOf(order), control.signal);
    sending = null;
    await database.rememberJob({ id: job.id, created: Date.now(), order });
    store.set({ job: { ...store.get("job"), id: job.id, status: job.status, position: job.position } });
    await alone(job.id, () => finish(job.id, order));
  } catch (error) {
    report(error);
  } finally {
    sending = null;
    store.set({ job: null });
  }
}

/** Makes it again as it was, but for the seed. */
export function again() {
  store.set({ seed: anySeed() });
  const wasLocked = store.get("isSeedLocked");
  store.set({ isSeedLocked: true });
  const going = go();
  store.set({ isSeedLocked: wasLocked });
  return going;
}

/** Calls off what is being made. */
export async function cancel() {
  sending?.abort();
  await cancelJob();
}

/** Finds again what was being made when the page was closed; not what another tab follows. */
export async function resume() {
  for (const { id, order, created } of await database.rememberedJobs()) {
    await alone(id, async () => {
      store.set({ job: { id, status: "queued", startedAt: created, isFoundAgain: true } });
      try {
        await restore(order);
        await finish(id, order);
      } catch (error) {
        // A server that was started anew knows it no more.
        if (!(error instanceof Fault && error.status === 404)) report(error);
      } finally {
        store.set({ job: null });
      }
    });
  }
}

/** Does `action` if no other tab follows the job. Without locks (a page that did not come by TLS)
 * tabs do not know of each other. */
async function alone(id, action) {
  if (!navigator.locks) return action();
  return navigator.locks.request(`job ${id}`, { ifAvailable: true }, (lock) => lock && action());
}

/** Waits for a job, and shows and keeps what it came to. */
async function finish(id, order) {
  const reply = await follow(id).finally(() => database.forgetJob(id));
  if (!reply) {
    announce("job.cancelled");
    return;
  }
  const entry = await entryOf(reply, order);
  await show(entry);
  await database.keep(entry);
  store.set({ historyChanged: entry.id });
  announce("job.done", {}, { isSeen: true });
}

/** What the history keeps of a reply. */
async function entryOf(reply, order) {
  const outputs = reply.data.map(({ b64_json: base64 }, index) => ({
    blob: fromBase64(base64, `image/${reply.output_format}`),
    // The layers of a picture have one seed.
    seed: isLayered(order) ? order.seed : seedOf(order.seed, index),
  }));
  const url = URL.createObjectURL(outputs[0].blob);
  const thumbnail = await thumbnailOf(url);
  URL.revokeObjectURL(url);
  const warnings = reply.warnings ?? [];
  return { ...order, id: newId(), created: Date.now(), outputs, thumbnail, warnings, size: reply.size };
}

const modelOf = (order) => store.get("server").models.find(({ id }) => id === order.model);

const isLayered = (order) => order.mode === "edit" && modelOf(order)?.edit_kind === "layers";

/** Shows an entry as the result. */
export async function show(entry) {
  const outputs = [];
  const fillsBeyond = modelOf(entry)?.fills_beyond_input ?? true;
  for (const { blob, seed } of entry.outputs) {
    const url = URL.createObjectURL(blob);
    const { naturalWidth: width, naturalHeight: height } = await imageAt(url);
    outputs.push({ blob, seed, url, width, height, fillsBeyond, name: nameOf(entry, seed, blob) });
  }
  const first = entry.inputs[0];
  const before = first ? await pictureOf(first.blob, first.name) : null;
  const result = { entry, outputs, before, index: 0, isLayered: isLayered(entry) };
  const last = store.get("result");
  store.set({ result, view: "result", warnings: byField(entry.warnings) });
  for (const { url } of [...(last?.outputs ?? []), last?.before ?? {}]) if (url) URL.revokeObjectURL(url);
}

function nameOf(entry, seed, blob) {
  const words = (entry.prompt || entry.mode).toLowerCase().match(/[\p{L}\p{N}]+/gu) ?? ["picture"];
  return `${words.slice(0, 6).join("-")}-${seed}.${endingOf(blob)}`;
}

/** Sets the controls as they were for an order. */
export async function restore(order) {
  const read = await Promise.all(order.inputs.map(({ blob, name }) => pictureOf(blob, name)));
  store.set({
    mode: order.mode,
    model: store.get("server").models.length > 1 ? order.model : "",
    prompt: order.prompt,
    values: { ...order.values },
    seed: order.seed,
    pictures: read.filter(Boolean),
    shown: 0,
    maskFile: order.mask,
    faults: {},
    view: "input",
  });
}

/** Shows what went wrong at the field that it names. */
function report(error) {
  if (error.name === "AbortError") return;
  if (!(error instanceof Fault)) console.error(error);
  const message = error instanceof Fault ? error.message : t("fault.connection");
  store.set({ faults: { [fieldNamed(error.param)]: message } });
}

/** The field of the page for a parameter. */
function fieldNamed(parameter) {
  if (!parameter) return "";
  return parameter.replace(/\[.*$/, "").replace(/^images$/, "image");
}

/** Warnings by the field that each names first, in quotes. */
function byField(warnings) {
  const sorted = {};
  for (const warning of warnings) {
    const name = /'([a-z_]+)(?:\[\])?'/.exec(warning)?.[1] ?? "";
    sorted[name] = sorted[name] ? `${sorted[name]} ${warning}` : warning;
  }
  return sorted;
}
