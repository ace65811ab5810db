// Light or dark: as the system has it, or as it was chosen.
import { fill, h, icon } from "./dom.js";
import { onLanguage, t } from "./i18n.js";

const THEMES = ["auto", "light", "dark"];
const ICONS = { auto: "auto", light: "sun", dark: "moon" };

/** A button that goes through the three. */
export function themeButton() {
  const element = h("button", { type: "button", class: "icon-button" });
  const show = () => {
    const theme = document.documentElement.dataset.theme ?? "auto";
    const name = t(`theme.${theme}`);
    fill(element, icon(ICONS[theme]));
    element.setAttribute("aria-label", name);
    element.title = name;
  };
  element.addEventListener("click", () => {
    const now = document.documentElement.dataset.theme ?? "auto";
    const next = THEMES[(THEMES.indexOf(now) + 1) % THEMES.length];
    if (next === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = next;
    try {
      localStorage.setItem("theme", next);
    } catch {
      // It is forgotten with the page.
    }
    show();
  });
  onLanguage(show);
  show();
  return element;
}
