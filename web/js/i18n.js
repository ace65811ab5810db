// The words of the page, in the language of whoever reads it. A language is a file of its own
// in `languages/`, and only the one that is used is fetched.

const NAMES = { en: "English", de: "Deutsch", es: "Español", zh: "中文" };
const LOADERS = {
  en: () => import("../languages/en.js"),
  de: () => import("../languages/de.js"),
  es: () => import("../languages/es.js"),
  zh: () => import("../languages/zh.js"),
};

let words = {};
let current = "en";
const listeners = new Set();

/** The languages: pairs of a code and the language's own name. */
export const languages = () => Object.entries(NAMES);

/** The code of the language in use. */
export const language = () => current;

/** The language that was chosen, else the first of the browser's that there is. */
export function preferredLanguage() {
  const chosen = stored();
  const wished = [chosen, ...(navigator.languages ?? [])].filter(Boolean);
  const codes = wished.map((tag) => tag.toLowerCase().split("-")[0]);
  return codes.find((code) => code in NAMES) ?? "en";
}

function stored() {
  try {
    return localStorage.getItem("language");
  } catch {
    return null;
  }
}

/** Speaks `code` from now on. */
export async function useLanguage(code) {
  words = (await LOADERS[code]()).default;
  current = code;
  document.documentElement.lang = code === "zh" ? "zh-Hans" : code;
  translateAll(document.body);
  for (const listener of listeners) listener();
}

/** Remembers the choice, and speaks it. */
export async function chooseLanguage(code) {
  try {
    localStorage.setItem("language", code);
  } catch {
    // It is forgotten with the tab.
  }
  await useLanguage(code);
}

/** Calls `listener` whenever the language changes. */
export const onLanguage = (listener) => listeners.add(listener);

/** The text of `key`, with `{name}` replaced; a text may depend on `count`. */
export function t(key, values = {}) {
  const form = new Intl.PluralRules(current).select(values.count ?? 0);
  const counted = values.count === undefined ? undefined : (words[`${key}.${form}`] ?? words[`${key}.other`]);
  const text = counted ?? words[key] ?? key;
  return text.replace(/\{(\w+)\}/g, (whole, name) => values[name] ?? whole);
}

/** Whether there are words for `key`. */
export const has = (key) => key in words;

/** A number as people write it here. */
export const number = (value, digits = 0) =>
  new Intl.NumberFormat(current, { maximumFractionDigits: digits }).format(value);

/** Fills in the texts of an element that has keys. */
export function translateElement(element) {
  const { t: text, tLabel: label, tPlaceholder: placeholder } = element.dataset;
  if (text) element.textContent = t(text);
  if (placeholder) element.placeholder = t(placeholder);
  if (label) {
    element.setAttribute("aria-label", t(label));
    if (element.tagName === "BUTTON") element.title = t(label);
  }
}

function translateAll(root) {
  for (const element of root.querySelectorAll("[data-t], [data-t-label], [data-t-placeholder]")) {
    translateElement(element);
  }
}
