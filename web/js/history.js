// The history: what was made in this browser, to look at and to go on from.
import * as database from "./database.js";
import { fill, h, iconButton } from "./dom.js";
import { language, onLanguage, t } from "./i18n.js";
import { restore, show } from "./run.js";
import { store } from "./store.js";

/** A row of thumbnails. */
export function historyRow() {
  const list = h("ol", { class: "history-list", label: "history.title", tabindex: "0" });
  const clear = h("button", {
    type: "button",
    class: "button quiet small",
    t: "history.clear",
    onclick: () => confirmClear(refresh),
  });
  const none = h("p", { class: "history-empty", t: "history.empty" });
  const head = h("div", { class: "history-head" }, h("h2", { class: "caption", t: "history.title" }), clear);
  const element = h("section", { class: "history", label: "history.title" }, head, none, list);
  let urls = [];
  let latest = 0;

  async function refresh() {
    latest += 1;
    const mine = latest;
    const entries = await database.entries();
    if (mine !== latest) return;
    const old = urls;
    urls = [];
    fill(
      list,
      entries.map((entry) => item(entry)),
    );
    for (const url of old) URL.revokeObjectURL(url);
    none.hidden = entries.length > 0;
    list.hidden = clear.hidden = entries.length === 0;
    mark();
  }

  function item(entry) {
    const url = URL.createObjectURL(entry.thumbnail);
    urls.push(url);
    const when = new Intl.DateTimeFormat(language(), { dateStyle: "medium", timeStyle: "short" }).format(
      entry.created,
    );
    const name = `${entry.prompt || t(`mode.${entry.mode}`)} · ${t("seed.title")} ${entry.seed} · ${when}`;
    const open = async () => {
      await restore(entry);
      await show(entry);
    };
    const remove = async () => {
      await database.remove(entry.id);
      await refresh();
    };
    const picture = h(
      "button",
      { type: "button", class: "thumbnail", "aria-label": name, title: name, onclick: open },
      h("img", { src: url, alt: "", loading: "lazy" }),
    );
    return h(
      "li",
      { "data-id": entry.id },
      picture,
      iconButton("close", "history.remove", remove, { class: "icon-button small" }),
    );
  }

  function mark() {
    const current = store.get("view") === "result" ? store.get("result")?.entry.id : null;
    for (const element of list.children) {
      const isCurrent = element.dataset.id === current;
      element.firstChild.setAttribute("aria-current", isCurrent);
    }
  }

  store.on(["historyChanged"], refresh);
  store.on(["result", "view"], mark);
  onLanguage(refresh);
  return element;
}

function confirmClear(refresh) {
  const close = () => dialog.close();
  const clear = async () => {
    await database.clear();
    await refresh();
    dialog.close();
  };
  const dialog = h(
    "dialog",
    { class: "dialog", "aria-labelledby": "clear-title" },
    h("h2", { id: "clear-title", t: "history.clearTitle" }),
    h("p", { t: "history.clearText" }),
    h(
      "div",
      { class: "dialog-actions" },
      h("button", { type: "button", class: "button", t: "history.keep", onclick: close }),
      h("button", { type: "button", class: "button danger", t: "history.clearAll", onclick: clear }),
    ),
  );
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
}
