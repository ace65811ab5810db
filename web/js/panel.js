// The controls, from top to bottom in the order in which they are used.
import { button, fill, h, icon, segmented } from "./dom.js";
import { field } from "./fields.js";
import { onLanguage, t } from "./i18n.js";
import { advancedParameters, usualParameters } from "./parameters.js";
import { pictureList } from "./pictures.js";
import { cancel, go } from "./run.js";
import { can, modes } from "./schema.js";
import { currentModel, store } from "./store.js";

/** The controls, as an element. */
export function panel() {
  const controls = h(
    "div",
    { class: "controls" },
    modeChooser(),
    pictureList(),
    promptField(),
    usualParameters(),
    advancedParameters(),
  );
  const form = h("form", { class: "panel", label: "panel.title", novalidate: true }, controls, goBar());
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    go();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !document.querySelector("dialog[open]"))
      go();
  });
  return form;
}

function modeChooser() {
  const place = h("div", { class: "modes" });
  store.on(["server", "mode"], ({ server, mode }) => {
    if (!server) return;
    const offered = modes();
    place.hidden = offered.length < 2;
    if (!offered.includes(mode)) store.set({ mode: offered[0] ?? "edit" });
    const chooser = segmented(
      "mode.title",
      offered.map((one) => [one, `mode.${one}`]),
      mode,
      (chosen) => choose(chosen),
    );
    fill(place, chooser);
  });
  return place;
}

/** Changes what is to be made; a model that cannot do it gives way to one that can. */
function choose(mode) {
  const { models } = store.get("server");
  const current = currentModel();
  const able = can(current, mode) ? current : models.find((model) => can(model, mode));
  store.set({ mode, model: able?.id ?? "", view: "input", faults: {} });
}

function promptField() {
  const input = h("textarea", { id: "prompt", rows: "3", placeholder: "prompt.hint", maxlength: "32000" });
  input.addEventListener("input", () => store.set({ prompt: input.value }));
  const chips = h("div", { class: "chips", role: "group", label: "prompt.suggestions" });
  const more = h("button", { type: "button", class: "chip more" });
  let isOpen = false;
  const refresh = () => {
    const known = currentModel()?.instructions ?? [];
    chips.hidden = known.length === 0;
    const shown = isOpen ? known : known.slice(0, 6);
    const items = shown.map((text) => {
      const use = () => store.set({ prompt: text });
      return h(
        "button",
        {
          type: "button",
          class: "chip",
          lang: "en",
          "aria-pressed": text === store.get("prompt"),
          onclick: use,
        },
        text,
      );
    });
    more.textContent = isOpen ? t("prompt.fewer") : t("prompt.more", { count: known.length - shown.length });
    more.setAttribute("aria-expanded", isOpen);
    fill(chips, items, known.length > 6 ? more : null);
  };
  more.addEventListener("click", () => {
    isOpen = !isOpen;
    refresh();
    more.focus();
  });
  store.on(["prompt", "model", "server"], ({ prompt }) => {
    if (input.value !== prompt) input.value = prompt;
    refresh();
  });
  onLanguage(refresh);
  return field({
    names: ["prompt"],
    control: input,
    around: h("div", { class: "prompt" }, input, chips),
    label: { t: "prompt.title" },
  });
}

function goBar() {
  const start = h(
    "button",
    { type: "submit", class: "button primary go", id: "go" },
    icon("spark"),
    h("span", { t: "go" }),
    h("kbd", { "aria-hidden": "true" }, "Ctrl ↵"),
  );
  const stop = button("stop", "job.cancel", () => cancel(), { class: "button danger go" });
  store.on(["job"], ({ job }) => {
    const hadFocus = [start, stop].includes(document.activeElement);
    start.hidden = job !== null;
    stop.hidden = job === null;
    if (hadFocus) (job ? stop : start).focus();
  });
  return h("div", { class: "go-bar" }, start, stop);
}
