// Replay: a file of this server says how it was made, and the page makes it again.
import * as database from "./database.js";
import { h } from "./dom.js";
import { pictureOf } from "./files.js";
import { t } from "./i18n.js";
import { restore } from "./run.js";
import { ENDPOINTS } from "./schema.js";
import { store } from "./store.js";

/** Asks whether to take the recipe or the picture. */
export function offerRecipe(recipe, picture, usePicture) {
  const words = Object.entries(recipe.parameters).map(([name, value]) => {
    const text =
      name === "seed" ? recipe.seed : String(typeof value === "object" ? JSON.stringify(value) : value);
    return h("div", {}, h("dt", {}, name), h("dd", {}, text));
  });
  const choose = (action) => () => {
    dialog.close();
    action();
  };
  const dialog = h(
    "dialog",
    { class: "dialog", "aria-labelledby": "recipe-title" },
    h("h2", { id: "recipe-title", t: "recipe.title" }),
    h("p", { t: "recipe.text" }),
    h(
      "div",
      { class: "recipe" },
      h("img", { src: picture.url, alt: "" }),
      h("dl", {}, h("div", {}, h("dt", {}, "model"), h("dd", {}, recipe.model)), words),
    ),
    h(
      "div",
      { class: "dialog-actions" },
      h("button", { type: "button", class: "button", t: "recipe.asInput", onclick: choose(usePicture) }),
      h("button", {
        type: "button",
        class: "button primary",
        t: "recipe.fill",
        onclick: choose(() => take(recipe)),
      }),
    ),
  );
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
}

/** Sets the controls as the recipe says; words and inputs come from the history, if it has them. */
async function take(recipe) {
  const mode = Object.keys(ENDPOINTS).find((name) => ENDPOINTS[name] === recipe.endpoint) ?? "edit";
  const { prompt, seed: _, ...rest } = recipe.parameters;
  const known = await inHistory(recipe);
  const texts = Object.entries(rest).map(([name, value]) => [
    name,
    typeof value === "object" ? JSON.stringify(value) : String(value),
  ]);
  await restore({
    mode,
    model: recipe.model,
    prompt: prompt ?? known?.prompt ?? "",
    values: Object.fromEntries(texts),
    seed: recipe.seed,
    inputs: known?.inputs ?? (await currentInputs()),
    mask: known?.mask ?? null,
  });
  store.set({ isSeedLocked: true });
  const lacks = !prompt && !known;
  store.set({
    warnings: { [lacks ? "prompt" : "seed"]: t(lacks ? "recipe.incomplete" : "recipe.complete") },
  });
}

async function inHistory(recipe) {
  const entries = await database.entries();
  return entries.find(
    ({ model, outputs, size }) =>
      model === recipe.model && size === recipe.picture && outputs.some(({ seed }) => seed === recipe.seed),
  );
}

async function currentInputs() {
  const pictures = store.get("pictures");
  const read = await Promise.all(pictures.map(({ blob, name }) => pictureOf(blob, name)));
  return read.filter(Boolean);
}
