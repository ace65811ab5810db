// Elements, made in one expression: h("button", { class: "plain", t: "go", onclick: go }).
//
// `t` is the key of the text, `label` that of the accessible name (and the tooltip),
// `placeholder` that of an input's hint; `i18n.js` fills them in, again when the language changes.
import { t, translateElement } from "./i18n.js";

const SVG = "http://www.w3.org/2000/svg";
const KEYS = { t: "t", label: "tLabel", placeholder: "tPlaceholder" };

/** An element with its attributes, listeners and children. */
export function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (name in KEYS) element.dataset[KEYS[name]] = value;
    else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "value" || name === "checked") element[name] = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  if (properties.t || properties.label || properties.placeholder) translateElement(element);
  element.append(...children.flat().filter((child) => child !== null && child !== false));
  return element;
}

/** A line drawing on a grid of 24, from the data of its paths. */
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  for (const data of ICONS[name].split("|")) {
    const path = document.createElementNS(SVG, "path");
    path.setAttribute("d", data);
    svg.append(path);
  }
  return svg;
}

/** A button that shows a drawing alone. */
export function iconButton(name, label, onclick, properties = {}) {
  return h("button", { type: "button", class: "icon-button", label, onclick, ...properties }, icon(name));
}

/** A button with a drawing and a word. */
export function button(name, key, onclick, properties = {}) {
  const word = h("span", { t: key });
  return h("button", { type: "button", class: "button", onclick, ...properties }, icon(name), word);
}

/** Buttons of which one is pressed. `choices`: pairs of a value and the key of its word. */
export function segmented(label, choices, chosen, onchoose, properties = {}) {
  const group = h("div", { class: "segmented", role: "group", label, ...properties });
  const press = (value) => {
    for (const item of group.children) item.setAttribute("aria-pressed", item.dataset.value === value);
  };
  for (const [value, key] of choices) {
    const item = h("button", { type: "button", "data-value": value, t: key });
    item.addEventListener("click", () => {
      press(value);
      onchoose(value);
    });
    group.append(item);
  }
  press(chosen);
  group.press = press;
  return group;
}

/** Replaces what is in `element`. */
export function fill(element, ...children) {
  element.replaceChildren(...children.flat().filter((child) => child !== null && child !== false));
  return element;
}

let names = 0;

/** A name for an element that others refer to. */
export function uniqueId(prefix) {
  names += 1;
  return `${prefix}-${names}`;
}

/** Says something to those who do not see it, and shows it for a moment, if it cannot be seen. */
export function announce(key, values, { isSeen = false } = {}) {
  const toast = document.getElementById("toast");
  toast.textContent = t(key, values);
  toast.classList.toggle("shown", !isSeen);
  clearTimeout(announce.timer);
  announce.timer = setTimeout(() => toast.classList.remove("shown"), 2600);
}

const ICONS = {
  plus: "M12 5v14M5 12h14",
  minus: "M5 12h14",
  close: "M6 6l12 12M18 6L6 18",
  image: "M4 5h16v14H4z|M4 16l5-5 4 4 3-3 4 4|M15 9h.01",
  dice: "M5 5h14v14H5z|M9 9h.01M15 9h.01M12 12h.01M9 15h.01M15 15h.01",
  lock: "M6 11h12v9H6z|M8.5 11V8a3.5 3.5 0 0 1 7 0v3",
  unlock: "M6 11h12v9H6z|M8.5 11V8a3.5 3.5 0 0 1 6.7-1.4",
  brush:
    "M20 4c-5 2-9 6-11 9l2 2c3-2 7-6 9-11z|M8.5 14c-2 0-3.500 1.500-3.500 3.500 0 1-.5 2-1.500 2.500 3 .5 7 0 7-4",
  eraser: "M9 19l-5-5 9-9 6 6-8 8z|M8.500 9.500l6 6|M9 19h11",
  undo: "M8 5L4 9l4 4|M4 9h10a6 6 0 0 1 0 12h-3",
  redo: "M16 5l4 4-4 4|M20 9H10a6 6 0 0 0 0 12h3",
  invert: "M12 4a8 8 0 1 0 0 16z|M12 4a8 8 0 0 1 0 16",
  trash: "M5 7h14|M10 7V4h4v3|M7 7l1 13h8l1-13",
  download: "M12 4v11|M7 11l5 5 5-5|M5 20h14",
  copy: "M9 9h11v11H9z|M5 15H4V4h11v1",
  code: "M8 7l-5 5 5 5|M16 7l5 5-5 5",
  again: "M20 11a8 8 0 0 0-14-4.500L4 9|M4 4v5h5|M4 13a8 8 0 0 0 14 4.500L20 15|M20 20v-5h-5",
  input: "M14 4h6v16h-6|M4 12h11|M11 8l4 4-4 4",
  zoomIn:
    "M10.500 4a6.500 6.500 0 1 0 0 13 6.500 6.500 0 0 0 0-13z|M15.500 15.500L20 20|M10.500 7.500v6M7.500 10.500h6",
  zoomOut: "M10.500 4a6.500 6.500 0 1 0 0 13 6.500 6.500 0 0 0 0-13z|M15.500 15.500L20 20|M7.500 10.500h6",
  fit: "M4 9V4h5M20 9V4h-5M4 15v5h5M20 15v5h-5",
  sun: "M12 8a4 4 0 1 0 0 8 4 4 0 0 0 0-8z|M12 2v2M12 20v2M4.900 4.900l1.400 1.400M17.700 17.700l1.400 1.400M2 12h2M20 12h2M4.900 19.100l1.400-1.400M17.700 6.300l1.400-1.400",
  moon: "M20 14.500A8.500 8.500 0 0 1 9.500 4a8.500 8.500 0 1 0 10.500 10.500z",
  auto: "M4 5h16v11H4z|M9 20h6M12 16v4",
  key: "M8 11a4 4 0 1 0 0 8 4 4 0 0 0 0-8z|M11 12l9-9|M16 7l3 3",
  stop: "M7 7h10v10H7z",
  check: "M5 12.500l4.500 4.500L19 7.500",
  layers: "M12 4l9 5-9 5-9-5z|M3 14l9 5 9-5",
  chevron: "M7 10l5 5 5-5",
  left: "M14 6l-6 6 6 6",
  right: "M10 6l6 6-6 6",
  spark: "M12 3l2.200 6.300L20 12l-5.800 2.700L12 21l-2.200-6.300L4 12l5.800-2.700z",
  eye: "M2.500 12S6 5.500 12 5.500 21.500 12 21.500 12 18 18.500 12 18.500 2.500 12 2.500 12z|M12 9.500a2.500 2.500 0 1 0 0 5 2.500 2.500 0 0 0 0-5z",
  globe:
    "M12 3a9 9 0 1 0 0 18 9 9 0 0 0 0-18z|M3 12h18|M12 3c3 3 3.500 6 3.500 9s-.5 6-3.500 9c-3-3-3.500-6-3.500-9S9 6 12 3z",
};
