// How far a picture is: its place in the line, its step, and the seconds that are left.
import { h } from "./dom.js";
import { number, t } from "./i18n.js";
import { store } from "./store.js";

/** A bar with words, which follows the job. */
export function progressBar() {
  const filling = h("div", { class: "bar-fill" });
  const bar = h(
    "div",
    {
      class: "bar",
      role: "progressbar",
      "aria-valuemin": "0",
      "aria-valuemax": "100",
      label: "job.progress",
    },
    filling,
  );
  const words = h("span", { class: "progress-words", role: "status" });
  const left = h("span", { class: "progress-left" });
  const element = h("div", { class: "progress" }, words, left, bar);

  const tick = () => {
    const job = store.get("job");
    if (!job) return;
    const share = shareOf(job);
    filling.style.transform = `scaleX(${share ?? 1})`;
    bar.classList.toggle("unknown", share === null);
    if (share === null) bar.removeAttribute("aria-valuenow");
    else bar.setAttribute("aria-valuenow", Math.round(100 * share));
    const text = wordsOf(job);
    if (words.textContent !== text) words.textContent = text;
    left.textContent = leftOf(job);
  };
  let timer = null;
  store.on(["job"], ({ job }) => {
    if (job && !timer) timer = setInterval(tick, 250);
    if (!job && timer) {
      clearInterval(timer);
      timer = null;
    }
    tick();
  });
  return element;
}

/** The share of the steps that is done; null before there are any. */
function shareOf({ status, step, total, picture = 1, count = 1 }) {
  if (status !== "running" || !total) return null;
  return Math.min(1, ((picture ?? 1) - 1 + step / total) / Math.max(1, count));
}

function wordsOf({ status, position, step, total, picture, count, isFoundAgain }) {
  if (status === "sending") return t("job.sending");
  if (status === "queued")
    return isFoundAgain && position == null ? t("job.found") : t("job.queued", { count: position ?? 0 });
  if (!total) return t("job.starting");
  if (step >= total) return t("job.finishing");
  const words = t("job.step", { step: step + 1, total });
  return count > 1 ? `${t("job.picture", { picture, count })} · ${words}` : words;
}

function leftOf({ leftMs, toldAt }) {
  if (leftMs === null || leftMs === undefined) return "";
  const seconds = Math.max(0, (leftMs - (performance.now() - toldAt)) / 1000);
  if (seconds < 1) return t("job.almost");
  return seconds < 90
    ? t("job.seconds", { count: Math.round(seconds) })
    : t("job.minutes", { minutes: number(seconds / 60, 0) });
}
