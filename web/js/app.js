// Puts the page together.
import { address, describeServer, Fault, keys } from "./api.js";
import { fill, h, icon } from "./dom.js";
import { historyRow } from "./history.js";
import {
  chooseLanguage,
  language,
  languages,
  onLanguage,
  preferredLanguage,
  t,
  useLanguage,
} from "./i18n.js";
import { askForKey } from "./key.js";
import { panel } from "./panel.js";
import { listenForFiles } from "./pictures.js";
import { resume } from "./run.js";
import { can } from "./schema.js";
import { stage } from "./stage.js";
import { currentModel, store } from "./store.js";
import { themeButton } from "./theme.js";

/** How long to wait before a server that loads its models is asked again, in milliseconds. */
const PATIENCE_MS = 1500;

function header() {
  const name = h("span", { class: "brand-name" });
  store.on(["server"], ({ server }) => {
    name.textContent = server?.info.service ?? "Diffuser API";
    document.title = `${name.textContent} · Playground`;
  });
  const documentation = h("a", { class: "header-link", href: address("docs").href, t: "header.docs" });
  const skip = h("a", { class: "skip", href: "#prompt", t: "header.skip" });
  return h(
    "header",
    { class: "header" },
    skip,
    h(
      "h1",
      { class: "brand" },
      h("img", { src: new URL("../icon.svg", import.meta.url).href, alt: "", width: "26", height: "26" }),
      name,
    ),
    modelChooser(),
    h("div", { class: "header-side" }, documentation, languageChooser(), themeButton()),
  );
}

function modelChooser() {
  const select = h("select", { label: "model.title", class: "model-select", hidden: true });
  const single = h("span", { class: "model-name", hidden: true });
  const element = h("div", { class: "model" }, select, single);
  store.on(["server", "model", "mode"], ({ server, mode }) => {
    if (!server) return;
    const { models } = server;
    select.hidden = models.length < 2;
    single.hidden = !select.hidden;
    fill(single, h("span", { class: "dot" }), models[0].id);
    single.title = models[0].description;
    fill(
      select,
      models.map((model) => h("option", { value: model.id, disabled: !can(model, mode) }, model.id)),
    );
    select.value = currentModel().id;
  });
  select.addEventListener("change", () => store.set({ model: select.value }));
  return element;
}

function languageChooser() {
  const options = languages().map(([code, name]) => h("option", { value: code, lang: code }, name));
  const select = h("select", { label: "language.title", class: "language" }, options);
  select.value = language();
  select.addEventListener("change", () => chooseLanguage(select.value));
  return h("div", { class: "language-chooser" }, icon("globe"), select);
}

/** What stands over the page until the server has told what it can do. */
function curtain() {
  const words = h("p", { role: "status" });
  const element = h(
    "div",
    { class: "curtain" },
    h("div", { class: "spinner", "aria-hidden": "true" }),
    words,
  );
  element.say = (text) => {
    if (words.textContent !== text) words.textContent = text;
    element.classList.add("late");
  };
  return element;
}

/** Asks the server what it is, for as long as it takes to have its models. */
async function meet(cover) {
  for (;;) {
    try {
      return await describeServer();
    } catch (error) {
      const isStarting = error instanceof Fault && error.status === 503;
      const cannotConnect = !(error instanceof Fault);
      if (cannotConnect) console.warn(error);
      cover.say(isStarting ? t("start.loading") : cannotConnect ? t("start.connecting") : error.message);
      await new Promise((resolve) => setTimeout(resolve, PATIENCE_MS));
    }
  }
}

/** Keeps what the canvas shows within the window, and says what belongs to whom. */
async function start() {
  keys.ask = askForKey;
  await useLanguage(preferredLanguage());
  const cover = curtain();
  const toast = h("div", { id: "toast", class: "toast", role: "status" });
  const main = h(
    "main",
    { class: "main", inert: true },
    panel(),
    h("div", { class: "right" }, stage(), historyRow()),
  );
  document.body.append(header(), main, cover, toast);
  listenForFiles(document.body);
  const server = await meet(cover);
  store.set({ server });
  cover.remove();
  main.inert = false;
  document.body.dataset.ready = "true";
  onLanguage(() => store.set({ server: { ...store.get("server") } }));
  await resume();
}

start();
