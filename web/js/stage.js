// The stage: what goes in, the picture coming about, and what came of it, in one place and size.
import { createBoard } from "./board.js";
import { showCode } from "./code.js";
import { announce, button, fill, h, icon, iconButton, segmented } from "./dom.js";
import { hasField } from "./fields.js";
import { pictureOf, save } from "./files.js";
import { onLanguage, t } from "./i18n.js";
import { createPainter, Mask } from "./mask.js";
import { choose, useAlone } from "./pictures.js";
import { progressBar } from "./progress.js";
import { again } from "./run.js";
import { sampleButtons } from "./samples.js";
import { takesMask } from "./schema.js";
import { currentModel, store } from "./store.js";
import { createViewer } from "./viewer.js";

/** The stage, as an element. */
export function stage() {
  const board = createBoard();
  const viewer = createViewer(board);
  const masking = maskControl(board);
  const tools = h("div", { class: "stage-tools" });
  const foot = h("div", { class: "stage-foot" });
  const strip = h("div", { class: "outputs", role: "group", label: "viewer.outputs" });
  const banner = generalNotes();
  const empty = emptyStage();
  const zoom = zoomControls(board);
  const middle = h("div", { class: "stage-middle" }, board.element, empty, strip, banner);
  const element = h("section", { class: "stage", label: "stage.title" }, tools, middle, foot);
  const progress = progressBar();
  const running = runningView(board);

  const refresh = () => {
    const { job, result, view, pictures, shown } = all();
    const isResult = !job && view === "result" && result;
    const input = pictures[shown];
    element.dataset.view = job ? "running" : isResult ? "result" : input ? "input" : "empty";
    empty.hidden = Boolean(job || isResult || input);
    board.element.hidden = !empty.hidden;
    strip.hidden = !isResult || result.outputs.length < 2;
    if (!masking.isPainting() || job || isResult) masking.leave();
    viewer.show(isResult ? result : null);
    if (job) {
      running.show(job, input ?? null);
      fill(tools, heading(result, "input"), zoom);
      fill(foot, progress);
    } else if (isResult) {
      running.hide();
      fill(tools, heading(result, "result"), waysOf(viewer, result), zoom);
      fill(foot, resultActions(result));
      outputs(strip, viewer, result);
    } else if (input) {
      running.hide();
      masking.show(input);
      fill(tools, heading(result, "input"), masking.control(), zoom);
      fill(foot, facts(input));
    } else {
      running.hide();
      fill(tools, heading(result, "input"));
      fill(foot, h("p", { class: "facts", t: "stage.hint" }));
    }
  };
  masking.onchange(refresh);
  store.on(["job", "result", "view", "pictures", "shown", "mode", "model", "server"], refresh);
  onLanguage(refresh);
  return element;
}

const all = () =>
  Object.fromEntries(["job", "result", "view", "pictures", "shown"].map((name) => [name, store.get(name)]));

/** What is to be done first: a place to drop a picture, and samples. */
function emptyStage() {
  // Where there is a finger in place of a pointer, nothing can be dropped.
  const isTouch = matchMedia("(hover: none)").matches;
  const drop = h(
    "button",
    { type: "button", class: "drop", onclick: choose },
    icon("image"),
    h("strong", { t: isTouch ? "empty.choose" : "empty.title" }),
    h("span", { t: isTouch ? "empty.chooseText" : "empty.text" }),
  );
  const samples = h("div", { class: "samples" }, h("p", { t: "empty.samples" }), sampleButtons());
  const words = h(
    "div",
    { class: "words-only" },
    icon("spark"),
    h("strong", { t: "empty.generate" }),
    h("span", { t: "empty.generateText" }),
  );
  const element = h("div", { class: "empty" }, drop, samples, words);
  store.on(["mode"], ({ mode }) => {
    drop.hidden = samples.hidden = mode === "generate";
    words.hidden = mode !== "generate";
  });
  return element;
}

/** Whether the input or the result is shown; both are there once there is a result. */
function heading(result, current) {
  const isIdle = !store.get("job");
  const hasInput = store.get("pictures").length > 0;
  if (!result || !isIdle || (!hasInput && current === "result")) return h("span", { class: "spacer" });
  const choices = [
    ["input", "stage.input"],
    ["result", "stage.result"],
  ];
  return segmented("stage.which", choices, current, (view) => store.set({ view }), {
    class: "segmented spacer",
  });
}

function zoomControls(board) {
  const percent = h("button", {
    type: "button",
    class: "percent",
    onclick: () => board.actualSize(),
  });
  board.onView(({ fit, zoom }) => {
    const text = `${Math.round(100 * fit * zoom * devicePixelRatio)} %`;
    percent.textContent = text;
    percent.setAttribute("aria-label", `${text}. ${t("zoom.actual")}`);
    percent.title = t("zoom.actual");
  });
  return h(
    "div",
    { class: "zoom", role: "group", label: "zoom.title" },
    iconButton("zoomOut", "zoom.out", () => board.zoomBy(0.8)),
    percent,
    iconButton("zoomIn", "zoom.in", () => board.zoomBy(1.25)),
    iconButton("fit", "zoom.fit", () => board.fit()),
  );
}

/** Painting of the mask, and its overlay on the input. */
function maskControl(board) {
  let isOn = false;
  let changed = () => {};
  const done = () => set(false);
  const painter = createPainter(board, done);
  const state = { mask: null, of: null };

  function set(on) {
    isOn = on;
    board.element.classList.toggle("painting", on);
    on ? painter.start(state.mask) : painter.stop();
    changed();
    if (on) board.element.focus();
  }

  /** The mask belongs to the first picture. */
  async function follow({ pictures, maskFile }) {
    const first = pictures[0] ?? null;
    if (first?.id === state.of) return;
    if (isOn) set(false);
    state.of = first?.id ?? null;
    state.mask =
      first &&
      new Mask(first.width, first.height, (mask) => {
        painter.refresh();
        store.set({ mask: mask.isEmpty ? null : mask, maskChanges: (store.get("maskChanges") ?? 0) + 1 });
      });
    store.set({ mask: null, maskFile: null });
    if (maskFile && first) await state.mask.load(maskFile);
  }
  store.on(["pictures"], follow);

  return {
    onchange: (listener) => {
      changed = listener;
    },
    isPainting: () => isOn,
    leave: () => isOn && set(false),
    show(input) {
      board.setSize(input.width, input.height);
      board.frame.className = "frame input";
      const image = h("img", { src: input.url, alt: input.name, class: "whole", draggable: "false" });
      const isFirst = input.id === state.of && takesMask();
      board.frame.replaceChildren(image, ...(isFirst ? [state.mask.canvas, painter.ring] : []));
    },
    control() {
      const isFirst = store.get("shown") === 0 && takesMask();
      if (!isFirst) return null;
      if (isOn) return painter.bar;
      const paint = button("brush", store.get("mask") ? "mask.edit" : "mask.paint", () => set(true), {
        class: "button quiet",
      });
      const drop = store.get("mask")
        ? iconButton("trash", "mask.clear", () => {
            state.mask.clear();
            changed();
          })
        : null;
      return h("div", { class: "tools" }, paint, drop);
    },
  };
}

/** The picture coming about, over the one that it is made from. */
function runningView(board) {
  const shown = h("img", { class: "whole preview", alt: "", draggable: "false" });
  const veil = h("div", { class: "veil", "aria-hidden": "true" });
  let current = null;
  let isOn = false;
  return {
    async show(job, input) {
      if (!isOn) {
        isOn = true;
        current = null;
        const { width, height } = input ?? sizeAsked();
        board.setSize(width, height);
        board.frame.className = "frame running";
        const base = input
          ? h("img", { src: input.url, alt: "", class: "whole base", draggable: "false" })
          : null;
        fill(board.frame, base, veil);
      }
      if (!job.preview || job.preview === current) return;
      current = job.preview;
      shown.src = job.preview;
      await shown.decode().catch(() => {});
      if (isOn && current === job.preview && !shown.isConnected) board.frame.insertBefore(shown, veil);
    },
    hide() {
      isOn = false;
    },
  };
}

/** The size of a picture that is made from words. */
function sizeAsked() {
  const [width, height] = (store.get("values").size ?? "").split("x").map(Number);
  if (width > 0 && height > 0) return { width, height };
  const side = Math.round(Math.sqrt(currentModel()?.image_area ?? 1048576));
  return { width: side, height: side };
}

/** The ways to look at a result. */
function waysOf(viewer, result) {
  const ways = [];
  if (result.isLayered) ways.push(["stack", "viewer.stack"]);
  if (result.before) ways.push(["compare", "viewer.compare"]);
  ways.push(["result", "viewer.alone"]);
  if (result.before) ways.push(["difference", "viewer.difference"]);
  const known = ways.map(([way]) => way);
  const fresh = result.isLayered ? "stack" : known[0];
  if (!known.includes(viewer.way()) || (result.isLayered && !result.wasSeen)) viewer.setWay(fresh);
  result.wasSeen = true;
  if (ways.length === 1) return h("span", {});
  return segmented("viewer.ways", ways, viewer.way(), (way) => viewer.setWay(way));
}

function resultActions(result) {
  const output = () => result.outputs[result.index];
  const chain = async () => {
    const picture = await pictureOf(output().blob, output().name);
    useAlone(picture);
    document.getElementById("prompt").focus();
  };
  const copy = async () => {
    try {
      const png = output().blob.type === "image/png" ? output().blob : null;
      await navigator.clipboard.write([
        new ClipboardItem({ "image/png": png ?? (await asPng(output().url)) }),
      ]);
      announce("result.copied");
    } catch {
      announce("result.notCopied");
    }
  };
  const side = h(
    "div",
    { class: "actions-side" },
    iconButton("download", "result.download", () => save(output().blob, output().name)),
    iconButton("copy", "result.copy", copy),
    iconButton("code", "result.code", () => showCode(result.entry, result.index)),
  );
  const about = h(
    "p",
    { class: "facts" },
    `${output().width} × ${output().height} · ${t("seed.title")} ${output().seed}`,
  );
  const next = h(
    "div",
    { class: "actions" },
    button("input", "result.use", chain, { class: "button quiet" }),
    button("again", "result.again", () => again(), { class: "button quiet" }),
  );
  return [about, side, next];
}

async function asPng(url) {
  const { canvasOf, fileOf, imageAt } = await import("./files.js");
  const image = await imageAt(url);
  const { canvas, context } = canvasOf(image.naturalWidth, image.naturalHeight);
  context.drawImage(image, 0, 0);
  return fileOf(canvas);
}

/** The pictures of a result, of which one is shown; of layers, which are. */
function outputs(strip, viewer, result) {
  const isStack = () => result.isLayered && viewer.way() === "stack";
  const press = () => {
    [...strip.children].forEach((item, index) => {
      item.setAttribute("aria-pressed", isStack() ? !viewer.hidden.has(index) : index === result.index);
    });
  };
  const items = result.outputs.map(({ url, seed }, index) => {
    const choose = () => {
      if (isStack()) viewer.hidden.has(index) ? viewer.hidden.delete(index) : viewer.hidden.add(index);
      else result.index = index;
      viewer.draw();
      press();
      if (!isStack()) store.set({ result: { ...result } });
    };
    const name = result.isLayered
      ? t("viewer.layer", { number: index + 1 })
      : t("viewer.output", { number: index + 1, seed });
    return h(
      "button",
      { type: "button", "aria-label": name, title: name, onclick: choose },
      h("img", { src: url, alt: "", draggable: "false" }),
    );
  });
  fill(strip, items);
  press();
}

function facts(input) {
  return h("p", { class: "facts" }, `${input.name} · ${input.width} × ${input.height}`);
}

/** Faults and warnings that concern no field of the page. */
function generalNotes() {
  const element = h("div", { class: "banner", "aria-live": "polite" });
  store.on(["faults", "warnings"], ({ faults, warnings }) => {
    const general = (notes) => Object.entries(notes).filter(([name]) => name === "" || !hasField(name));
    const close = (name) => () => store.set({ [name]: {} });
    fill(
      element,
      general(faults).map(([, text]) =>
        h(
          "p",
          { class: "fault", role: "alert" },
          text,
          iconButton("close", "close", close("faults"), { class: "icon-button small" }),
        ),
      ),
      general(warnings).map(([, text]) =>
        h(
          "p",
          { class: "warning" },
          text,
          iconButton("close", "close", close("warnings"), { class: "icon-button small" }),
        ),
      ),
    );
  });
  return element;
}
