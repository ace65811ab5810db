// What is asked for, as the page has it, and as it is sent.

import { PREVIEWS } from "./jobs.js";
import { ENDPOINTS, fieldOf, mostPictures, takesMask, typeOf } from "./schema.js";
import { currentModel, store } from "./store.js";

/** What the controls say now: an order, which the history keeps as it is. */
export async function orderOf() {
  const { mode, prompt, values, seed, mask, pictures } = readAll();
  const inputs = pictures.slice(0, mostPictures());
  const known = Object.entries(values).filter(([name, value]) => value !== "" && fieldOf(name));
  return {
    mode,
    model: currentModel().id,
    prompt,
    values: Object.fromEntries(known),
    seed,
    inputs: inputs.map(({ name, blob, width, height }) => ({ name, blob, width, height })),
    mask: mask && takesMask() ? await mask.file() : null,
  };
}

function readAll() {
  const names = ["mode", "prompt", "values", "seed", "mask", "pictures"];
  return Object.fromEntries(names.map((name) => [name, store.get(name)]));
}

/** The fields of an order that are no files, as [name, text]. */
export function fieldsOf(order) {
  const isOnlyModel = store.get("server").models.length === 1;
  const fields = [];
  if (order.prompt) fields.push(["prompt", order.prompt]);
  if (!isOnlyModel) fields.push(["model", order.model]);
  fields.push(...Object.entries(order.values));
  fields.push(["seed", order.seed]);
  return fields;
}

/** An order as it is sent: as a job, whose unfinished pictures are shown. */
export function requestOf(order) {
  const path = store.get("server").endpoints[ENDPOINTS[order.mode]];
  const fields = [...fieldsOf(order), ["background", "true"], ["partial_images", String(PREVIEWS)]];
  if (order.mode === "generate") {
    const body = JSON.stringify(
      Object.fromEntries(fields.map(([name, text]) => [name, typedValue(name, text)])),
    );
    return { path, body, headers: { "Content-Type": "application/json" } };
  }
  const body = new FormData();
  for (const { name, blob } of order.inputs) body.append("image", blob, name);
  if (order.mask) body.append("mask", order.mask, "mask.png");
  for (const [name, text] of fields) body.append(name, text);
  return { path, body, headers: {} };
}

/** The value in JSON that a text stands for. */
export function typedValue(name, text) {
  if (name === "background") return true;
  const type = typeOf(fieldOf(name) ?? {});
  if (type === "array" || type === "object") return JSON.parse(text);
  if (type === "boolean") return text === "true";
  const isExact = Number.isFinite(Number(text)) && (type !== "integer" || Number.isSafeInteger(Number(text)));
  return (type === "integer" || type === "number") && isExact ? Number(text) : text;
}

/** A seed that nobody has chosen. */
export const anySeed = () => String(crypto.getRandomValues(new Uint32Array(1))[0] % 2 ** 31);

/** The seed of the picture of this number. */
export function seedOf(seed, index) {
  try {
    return String(BigInt(seed) + BigInt(index));
  } catch {
    return seed;
  }
}
