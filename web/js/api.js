// Requests to the server that this page is from, and what its answers mean.

// This file lies in `playground/VERSION/js/`: what is above is the server's own root, also behind
// a proxy's path.
const ROOT = new URL("../../../", import.meta.url);

/** The address of a path of the server. */
export const address = (path) => new URL(path.replace(/^\//, ""), ROOT);

/** Why a request was refused, as the server says it. */
export class Fault extends Error {
  constructor({ message, param = null, code = null, status = 0, retryAfter = 0 }) {
    super(message);
    Object.assign(this, { param, code, status, retryAfter });
  }
}

/** The key, for as long as the tab is open; and who asks for one. */
export const keys = {
  read() {
    try {
      return sessionStorage.getItem("key") ?? "";
    } catch {
      return this.unstored ?? "";
    }
  },
  write(key) {
    this.unstored = key;
    try {
      sessionStorage.setItem("key", key);
    } catch {
      // Kept in this page alone.
    }
  },
  /** Set by the page: asks for a key, whether the last one was refused or not. */
  ask: async (_wasRefused) => {
    throw new Fault({ message: "A key is needed.", status: 401 });
  },
};

/** Sends a request; asks for a key if one is wanted. Throws a `Fault` for every refusal. */
export async function send(path, { method = "GET", body, headers = {}, signal } = {}) {
  for (;;) {
    const key = keys.read();
    const own = { Accept: "application/json", ...headers };
    if (key) own.Authorization = `Bearer ${key}`;
    const response = await fetch(address(path), { method, body, headers: own, signal });
    if (response.ok) return response;
    const fault = await faultOf(response);
    if (response.status !== 401) throw fault;
    await keys.ask(Boolean(key), fault.message);
  }
}

/** The JSON of an answer. */
export const json = async (path, options) => (await send(path, options)).json();

async function faultOf(response) {
  const text = await response.text();
  let error = {};
  try {
    error = JSON.parse(text).error ?? {};
  } catch {
    // A proxy's own page.
  }
  return new Fault({
    message: error.message ?? `${response.status} ${response.statusText}`,
    param: error.param,
    code: error.code,
    status: response.status,
    retryAfter: Number(response.headers.get("retry-after") ?? 0),
  });
}

/** The events of a stream, one after the other: { name, id, data }. */
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const blocks = (rest + value).split(/\r?\n\r?\n/);
    rest = blocks.pop();
    for (const block of blocks) {
      const event = parseEvent(block);
      if (event.data !== "") yield event;
    }
  }
}

/** One event of a stream of server-sent events. */
export function parseEvent(block) {
  const event = { name: "message", id: null, data: "" };
  const lines = [];
  for (const line of block.split(/\r?\n/)) {
    const [, field, value] = /^([^:]*): ?(.*)$/.exec(line) ?? [];
    if (field === "event") event.name = value;
    else if (field === "id") event.id = value;
    else if (field === "data") lines.push(value);
  }
  event.data = lines.join("\n");
  return event;
}

/** All that the page needs to know of the server. */
export async function describeServer() {
  const [info, document] = await Promise.all([json("/"), json("/openapi.json")]);
  const models = info.endpoints.models;
  const [details, loras] = await Promise.all([
    Promise.all(info.models.map((id) => json(`${models}/${encodeURIComponent(id)}`))),
    json(`${models.replace(/models$/, "loras")}`).catch(() => ({ data: [] })),
  ]);
  return {
    info,
    document,
    endpoints: info.endpoints,
    jobs: models.replace(/models$/, "jobs"),
    models: details.map(modelOf),
    loras: loras.data,
  };
}

function modelOf(details) {
  const { details: facts, capabilities, qualities, aliases } = details;
  return { ...facts, capabilities, qualities, aliases };
}
