// A control with its name, its hint, and what the server says of it.
import { fill, h, uniqueId } from "./dom.js";
import { store } from "./store.js";

/** Whether some field of the page stands for the parameter `name`. */
export const hasField = (name) => document.querySelector(`[data-field~="${CSS.escape(name)}"]`) !== null;

/**
 * A labelled control. `names`: the parameters whose faults and warnings belong here; `control`: the
 * element that is labelled; `around`: what is shown in its place, if it is a part of that.
 */
export function field({ names, control, label, hint, around = control, extra }) {
  control.id ||= uniqueId("control");
  const { id } = control;
  const notes = h("div", { class: "notes", id: `${id}-notes` });
  const caption = label ? h("label", { for: id, ...label }) : null;
  const head = caption || extra ? h("div", { class: "field-head" }, caption, extra ?? null) : null;
  const hintLine = hint ? h("p", { class: "hint", id: `${id}-hint`, ...hint }) : null;
  control.setAttribute("aria-describedby", `${id}-notes${hint ? ` ${id}-hint` : ""}`);
  const element = h("div", { class: "field", "data-field": names.join(" ") }, head, around, notes, hintLine);
  follow(names, control, notes);
  return element;
}

/** Shows in `notes` what is said of the parameters `names`. */
export function follow(names, control, notes) {
  store.on(["faults", "warnings"], ({ faults, warnings }) => {
    if (!notes.isConnected && notes.wasShown) return;
    notes.wasShown = notes.isConnected;
    const faulty = names.map((name) => faults[name]).filter(Boolean);
    const warned = names.map((name) => warnings[name]).filter(Boolean);
    fill(
      notes,
      faulty.map((text) => h("p", { class: "fault", role: "alert" }, text)),
      warned.map((text) => h("p", { class: "warning", role: "status" }, text)),
    );
    if (faulty.length > 0) {
      control.setAttribute("aria-invalid", "true");
      reveal(control);
    } else {
      control.removeAttribute("aria-invalid");
    }
  });
}

/** Brings a control into view, and to the keyboard. */
function reveal(control) {
  control.closest("details")?.setAttribute("open", "");
  control.scrollIntoView({ block: "center", behavior: "instant" });
  if (control.isConnected) control.focus({ preventScroll: true });
}
