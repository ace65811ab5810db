// The parameters: those that everybody needs, with controls of their own, and all others, as the
// server's OpenAPI document describes them.
import { fill, h, icon, iconButton, segmented } from "./dom.js";
import { field } from "./fields.js";
import { has, number, onLanguage, t } from "./i18n.js";
import { anySeed } from "./request.js";
import { advanced, defaultOf, fieldOf, typeOf } from "./schema.js";
import { currentModel, store } from "./store.js";

/** Sets a parameter; the empty text is none. */
export function setValue(name, text) {
  const { [name]: _, ...others } = store.get("values");
  store.set({ values: text === "" ? others : { ...others, [name]: text } });
}

/** Size, quality, number and seed. */
export function usualParameters() {
  return h(
    "div",
    { class: "group" },
    qualityField(),
    h("div", { class: "pair" }, sizeField(), countField()),
    seedField(),
  );
}

function qualityField() {
  const words = ["auto", "low", "medium", "high"];
  const control = segmented(
    "quality.title",
    words.map((word) => [word, `quality.${word}`]),
    "auto",
    (word) => setValue("quality", word === "auto" ? "" : word),
  );
  const steps = h("span", { class: "aside" });
  store.on(["values", "server", "model"], ({ values }) => {
    control.press(values.quality ?? "auto");
    const model = currentModel();
    if (!model) return;
    const preset = model.qualities.find(({ quality }) => quality === values.quality);
    const count = Number(
      values.num_inference_steps ?? preset?.num_inference_steps ?? model.defaults.num_inference_steps,
    );
    steps.textContent = t("quality.steps", { count });
  });
  return field({
    names: ["quality"],
    control,
    extra: h("div", { class: "field-title" }, h("span", { t: "quality.title" }), steps),
  });
}

const SHAPES = { square: [1, 1], landscape: [3, 2], portrait: [2, 3], wide: [16, 9] };

/** A size in these proportions, of the area at which the model works. */
function sizeOf([across, down], model) {
  const side = Math.sqrt((model.image_area ?? 1048576) / (across * down));
  const rounded = (length) => Math.max(1, Math.round(length / model.size_multiple)) * model.size_multiple;
  return `${rounded(side * across)}x${rounded(side * down)}`;
}

function sizeField() {
  const select = h("select", {});
  const custom = h("input", {
    type: "text",
    inputmode: "numeric",
    placeholder: "1024x768",
    spellcheck: "false",
    label: "size.custom",
    autocomplete: "off",
  });
  const around = h("div", { class: "size" }, select, custom);
  const options = (model, mode) => [
    ["", t(mode === "generate" ? "size.model" : "size.auto")],
    ...Object.entries(SHAPES).map(([name, shape]) => [
      sizeOf(shape, model),
      `${t(`size.${name}`)} · ${sizeOf(shape, model).replace("x", " × ")}`,
    ]),
    ["custom", t("size.custom")],
  ];
  let isCustom = false;
  const refresh = () => {
    const model = currentModel();
    if (!model) return;
    const { size = "" } = store.get("values");
    const choices = options(model, store.get("mode"));
    const isListed = choices.some(([value]) => value === size);
    if (size !== "" && !isListed) isCustom = true;
    fill(
      select,
      choices.map(([value, name]) => h("option", { value }, name)),
    );
    select.value = isCustom ? "custom" : size;
    custom.hidden = !isCustom;
    if (document.activeElement !== custom) custom.value = isCustom ? size : "";
  };
  select.addEventListener("change", () => {
    isCustom = select.value === "custom";
    setValue("size", isCustom ? "" : select.value);
    refresh();
    if (isCustom) custom.focus();
  });
  custom.addEventListener("input", () => setValue("size", custom.value.trim().replace(/\s*[×*X]\s*/, "x")));
  store.on(["values", "server", "model", "mode"], refresh);
  onLanguage(refresh);
  return field({ names: ["size"], control: select, around, label: { t: "size.title" } });
}

function countField() {
  const input = h("input", { type: "number", min: "1", step: "1", inputmode: "numeric", placeholder: "1" });
  input.addEventListener("input", () => setValue("n", input.value === "1" ? "" : input.value));
  const change = (by) => () => {
    const most = fieldOf("n")?.maximum ?? 10;
    const count = Math.min(most, Math.max(1, Number(store.get("values").n ?? 1) + by));
    setValue("n", count === 1 ? "" : String(count));
  };
  store.on(["values"], ({ values }) => {
    if (document.activeElement !== input) input.value = values.n ?? "1";
  });
  const around = h(
    "div",
    { class: "stepper" },
    iconButton("minus", "count.fewer", change(-1)),
    input,
    iconButton("plus", "count.more", change(1)),
  );
  return field({ names: ["n"], control: input, around, label: { t: "count.title" } });
}

function seedField() {
  const input = h("input", {
    type: "text",
    inputmode: "numeric",
    placeholder: "seed.any",
    autocomplete: "off",
    spellcheck: "false",
  });
  input.addEventListener("input", () =>
    store.set({ seed: input.value.trim(), isSeedLocked: input.value.trim() !== "" }),
  );
  const dice = iconButton("dice", "seed.dice", () => store.set({ seed: anySeed() }));
  const lock = h("button", { type: "button", class: "icon-button", label: "seed.lock" });
  lock.addEventListener("click", () => store.set({ isSeedLocked: !store.get("isSeedLocked") }));
  store.on(["seed", "isSeedLocked"], ({ seed, isSeedLocked }) => {
    if (input.value !== seed) input.value = seed;
    lock.setAttribute("aria-pressed", isSeedLocked);
    fill(lock, icon(isSeedLocked ? "lock" : "unlock"));
  });
  const around = h("div", { class: "seed" }, input, dice, lock);
  return field({
    names: ["seed"],
    control: input,
    around,
    label: { t: "seed.title" },
    hint: { t: "seed.hint" },
  });
}

/** All other parameters, behind a fold. */
export function advancedParameters() {
  const list = h("div", { class: "advanced" });
  const count = h("span", { class: "count" });
  const summary = h("summary", {}, h("span", { t: "advanced.title" }), count, icon("chevron"));
  const element = h("details", { class: "fold" }, summary, list);
  const refresh = () => {
    if (!store.get("server")) return;
    fill(
      list,
      advanced().map(([name, schema]) => parameter(name, schema)),
    );
  };
  store.on(["server", "model", "mode"], refresh);
  onLanguage(refresh);
  store.on(["values", "mode", "model"], ({ values, server }) => {
    const set = server ? advanced().filter(([name]) => values[name] !== undefined).length : 0;
    count.textContent = set > 0 ? number(set) : "";
  });
  return element;
}

/** A name as people read it. */
const titleOf = (name) => (has(`parameter.${name}`) ? t(`parameter.${name}`) : name.replaceAll("_", " "));

/** A word of help: ours, or the server's. */
function hintOf(name, schema) {
  const own = `parameter.${name}.hint`;
  return has(own) ? t(own) : (schema.description ?? "").replaceAll("`", "");
}

function parameter(name, schema) {
  const make = {
    integer: numeric,
    number: numeric,
    boolean: flag,
    array: name === "loras" ? loraList : words,
  }[typeOf(schema)];
  const control = schema.enum ? choice(name, schema) : (make ?? words)(name, schema);
  const label = h("span", {}, titleOf(name));
  const title = h("label", { class: "parameter-name" }, label, h("code", {}, name));
  const hint = h("p", { class: "hint" }, hintOf(name, schema));
  const element = field({
    names: [name],
    control: control.input,
    around: control.around ?? control.input,
    extra: title,
  });
  title.setAttribute("for", control.input.id);
  element.append(hint);
  return element;
}

function numeric(name, schema) {
  const least = schema.minimum ?? schema.exclusiveMinimum;
  const input = h("input", {
    type: "number",
    inputmode: "decimal",
    min: least,
    max: schema.maximum,
    step: typeOf(schema) === "integer" ? 1 : "any",
  });
  return bound(name, schema, input);
}

function words(name, schema) {
  return bound(name, schema, h("input", { type: "text", maxlength: schema.maxLength, autocomplete: "off" }));
}

/** Has an input show and set a parameter. */
function bound(name, schema, input) {
  const refresh = () => {
    input.placeholder = defaultOf(name, schema).trim() || t("advanced.unset");
    if (document.activeElement !== input) input.value = store.get("values")[name] ?? "";
  };
  input.addEventListener("input", () => setValue(name, input.value));
  store.on(["values", "model"], () => input.isConnected && refresh());
  refresh();
  return { input };
}

function choice(name, schema) {
  const usual = schema.default;
  const options = schema.enum.filter((value) => typeof value === "string");
  const select = h(
    "select",
    {},
    options.map((value) => h("option", { value: value === usual ? "" : value }, value)),
  );
  if (usual === undefined) select.prepend(h("option", { value: "" }, t("advanced.unset")));
  select.value = store.get("values")[name] ?? "";
  select.addEventListener("change", () => setValue(name, select.value));
  return { input: select };
}

function flag(name, schema) {
  const usual = schema.default === true;
  const input = h("input", { type: "checkbox", role: "switch", class: "switch" });
  input.checked = (store.get("values")[name] ?? String(usual)) === "true";
  input.addEventListener("change", () =>
    setValue(name, input.checked === usual ? "" : String(input.checked)),
  );
  return { input };
}

/** LoRAs of the model, each with a strength. */
function loraList() {
  const model = currentModel();
  const known = store.get("server").loras.filter(({ models }) => models.includes(model.id));
  const read = () => {
    try {
      return JSON.parse(store.get("values").loras ?? "[]");
    } catch {
      return [];
    }
  };
  const write = (chosen) => setValue("loras", chosen.length === 0 ? "" : JSON.stringify(chosen));
  const adder = h(
    "select",
    {},
    h("option", { value: "" }, t("loras.add")),
    known.map(({ id }) => h("option", { value: id }, id)),
  );
  const list = h("ul", { class: "lora-list" });
  const refresh = () =>
    fill(
      list,
      read().map((lora) => loraItem(lora, read, write, refresh)),
    );
  adder.addEventListener("change", () => {
    write([...read().filter(({ name }) => name !== adder.value), { name: adder.value, scale: 1 }]);
    adder.value = "";
    refresh();
  });
  refresh();
  return { input: adder, around: h("div", {}, list, adder) };
}

function loraItem(lora, read, write, refresh) {
  const scale = h("input", {
    type: "number",
    step: "0.05",
    value: String(lora.scale),
    "aria-label": t("loras.strength", { name: lora.name }),
  });
  scale.addEventListener("input", () =>
    write(read().map((one) => (one.name === lora.name ? { ...one, scale: Number(scale.value) } : one))),
  );
  const remove = () => {
    write(read().filter(({ name }) => name !== lora.name));
    refresh();
  };
  return h(
    "li",
    {},
    h("span", {}, lora.name),
    scale,
    iconButton("close", "loras.remove", remove, { class: "icon-button small" }),
  );
}
