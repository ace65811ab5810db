// The dialog that asks for a key, where the server wants one.
import { keys } from "./api.js";
import { h } from "./dom.js";

let asking = null;

/** Asks until there is a key; `wasRefused` and `message` say what became of the last one. */
export function askForKey(wasRefused, message) {
  asking ??= ask(wasRefused, message).finally(() => {
    asking = null;
  });
  return asking;
}

function ask(wasRefused, message) {
  return new Promise((resolve) => {
    const input = h("input", {
      type: "password",
      id: "key",
      autocomplete: "off",
      required: true,
      spellcheck: "false",
      "aria-describedby": "key-notes",
    });
    const fault = wasRefused ? h("p", { class: "fault", role: "alert" }, message) : null;
    if (wasRefused) input.setAttribute("aria-invalid", "true");
    const form = h(
      "form",
      { method: "dialog" },
      h("h2", { id: "key-title", t: "key.title" }),
      h("p", { t: "key.text" }),
      h(
        "div",
        { class: "field" },
        h("label", { for: "key", t: "key.label" }),
        input,
        h("div", { class: "notes", id: "key-notes" }, fault),
      ),
      h(
        "div",
        { class: "dialog-actions" },
        h("button", { class: "button primary", type: "submit", t: "key.use" }),
      ),
    );
    const dialog = h("dialog", { class: "dialog", "aria-labelledby": "key-title" }, form);
    form.addEventListener("submit", () => {
      keys.write(input.value.trim());
      resolve();
    });
    // Without a key there is nothing to see.
    dialog.addEventListener("cancel", (event) => event.preventDefault());
    dialog.addEventListener("close", () => dialog.remove());
    document.body.append(dialog);
    dialog.showModal();
    input.focus();
  });
}
