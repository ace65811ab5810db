// What the parts of the page share. Each part reads it, changes it, and hears of changes.

/** Values by name; `on` hears of those that change. */
export function createStore(initial) {
  const values = { ...initial };
  const listeners = [];
  return {
    get: (name) => values[name],
    /** Changes values, then tells, once each, those who listen to one of them. */
    set(changes) {
      const changed = Object.keys(changes).filter((name) => values[name] !== changes[name]);
      Object.assign(values, changes);
      for (const { names, listener } of listeners) {
        if (names.some((name) => changed.includes(name))) listener(values);
      }
    },
    /** Calls `listener` now, and whenever one of `names` changes. */
    on(names, listener) {
      listeners.push({ names, listener });
      listener(values);
    },
  };
}

/** The state of the page. */
export const store = createStore({
  /** What the server is, what its models are, its OpenAPI document. */
  server: null,
  /** `edit`, `generate` or `vary`. */
  mode: "edit",
  /** The id of the model, or nothing for the server's choice. */
  model: "",
  /** The input pictures: { id, name, blob, url, width, height }. */
  pictures: [],
  /** The one of them that is shown. */
  shown: 0,
  /** What is painted over: a mask as a PNG file, or null. */
  mask: null,
  prompt: "",
  /** Parameters that were chosen, by name, as text. */
  values: {},
  seed: "",
  isSeedLocked: false,
  /** What is being made: { status, position, step, total, picture, leftMs, preview } or null. */
  job: null,
  /** What was made: an entry of the history with addresses for its files, or null. */
  result: null,
  /** What the stage shows: `input` or `result`. */
  view: "input",
  /** What is wrong, by the name of the field; "" for what concerns none. */
  faults: {},
  /** What the server says besides, by the name of the field. */
  warnings: {},
});

/** The details of the model in use; null before the server has told. */
export function currentModel() {
  const server = store.get("server");
  if (!server) return null;
  return server.models.find((model) => model.id === store.get("model")) ?? server.models[0] ?? null;
}
