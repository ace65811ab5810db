// A mask, painted over a picture: where it is painted, the model works.

import { isPinching } from "./board.js";
import { h, icon, iconButton, segmented } from "./dom.js";
import { canvasOf, fileOf, imageAt } from "./files.js";

/** The longer side of the canvas that is painted on; the file has the picture's own size. */
const LARGEST_SIDE = 2048;
/** Strokes that can be taken back. */
const MOST_UNDONE = 24;
/** A pixel is in the mask from this much of the brush's soft edge on. */
const THRESHOLD = 128;

/** The mask of a picture of this size. `onchange` is called after every change. */
export class Mask {
  constructor(width, height, onchange) {
    this.size = { width, height };
    this.scale = Math.min(1, LARGEST_SIDE / Math.max(width, height));
    const sides = [width, height].map((side) => Math.max(1, Math.round(side * this.scale)));
    Object.assign(this, canvasOf(...sides, { willReadFrequently: true }));
    this.canvas.className = "mask";
    this.undone = [];
    this.done = [];
    this.onchange = onchange;
    this.isEmpty = true;
  }

  /** What is painted, a byte for each pixel. */
  #pixels() {
    const { data } = this.context.getImageData(0, 0, this.canvas.width, this.canvas.height);
    const painted = new Uint8Array(data.length / 4);
    for (let index = 0; index < painted.length; index += 1) painted[index] = data[index * 4 + 3];
    return painted;
  }

  #show(painted) {
    const image = this.context.createImageData(this.canvas.width, this.canvas.height);
    for (let index = 0; index < painted.length; index += 1) image.data[index * 4 + 3] = painted[index];
    this.context.putImageData(image, 0, 0);
    this.#changed(painted);
  }

  #changed(painted = this.#pixels()) {
    this.isEmpty = !painted.some((alpha) => alpha >= THRESHOLD);
    this.onchange(this);
  }

  /** Remembers what there is, to come back to. */
  begin() {
    this.done = [...this.done.slice(1 - MOST_UNDONE), this.#pixels()];
    this.undone = [];
  }

  /** Paints, or erases, from one point of the picture to another. */
  stroke(from, to, diameter, isErasing) {
    const { context, scale } = this;
    context.globalCompositeOperation = isErasing ? "destination-out" : "source-over";
    context.lineCap = "round";
    context.lineJoin = "round";
    context.lineWidth = diameter * scale;
    context.beginPath();
    context.moveTo(from.x * scale, from.y * scale);
    context.lineTo(to.x * scale + 0.01, to.y * scale);
    context.stroke();
  }

  end() {
    this.#changed();
  }

  #back(from, to) {
    if (this[from].length === 0) return;
    this[to] = [...this[to], this.#pixels()];
    const painted = this[from].at(-1);
    this[from] = this[from].slice(0, -1);
    this.#show(painted);
  }

  undo() {
    this.#back("done", "undone");
  }

  redo() {
    this.#back("undone", "done");
  }

  invert() {
    this.begin();
    this.#show(this.#pixels().map((alpha) => 255 - alpha));
  }

  clear() {
    this.begin();
    this.#show(new Uint8Array(this.canvas.width * this.canvas.height));
  }

  /** The file that the server takes: as large as the picture, transparent where it is painted. */
  async file() {
    const { width, height } = this.size;
    const { canvas, context } = canvasOf(width, height);
    context.drawImage(this.canvas, 0, 0, width, height);
    const image = context.getImageData(0, 0, width, height);
    for (let at = 0; at < image.data.length; at += 4) {
      const isPainted = image.data[at + 3] >= THRESHOLD;
      image.data.fill(0, at, at + 3);
      image.data[at + 3] = isPainted ? 0 : 255;
    }
    context.putImageData(image, 0, 0);
    return fileOf(canvas);
  }

  /** Paints what a file of `file` says. */
  async load(blob) {
    const url = URL.createObjectURL(blob);
    const image = await imageAt(url);
    URL.revokeObjectURL(url);
    const { canvas, context } = canvasOf(this.canvas.width, this.canvas.height);
    context.drawImage(image, 0, 0, canvas.width, canvas.height);
    const { data } = context.getImageData(0, 0, canvas.width, canvas.height);
    const painted = new Uint8Array(data.length / 4).map((_, index) => 255 - data[index * 4 + 3]);
    this.#show(painted);
  }
}

/** The tools, and what the pointer and the keys do on the board while one paints. */
export function createPainter(board, ondone) {
  const state = { mask: null, tool: "brush", diameter: 40, cursor: null, last: null, isOn: false };
  const ring = h("div", { class: "brush-ring", "aria-hidden": "true", hidden: true });
  const size = h("input", { type: "range", min: "1", max: "100", value: "55", label: "mask.size" });
  const tools = segmented(
    "mask.tool",
    [
      ["brush", "mask.brush"],
      ["eraser", "mask.eraser"],
    ],
    "brush",
    (tool) => choose(tool),
  );
  const undo = iconButton("undo", "mask.undo", () => state.mask.undo());
  const redo = iconButton("redo", "mask.redo", () => state.mask.redo());
  const bar = h(
    "div",
    { class: "tools", role: "toolbar", label: "mask.tools" },
    tools,
    h("label", { class: "brush-size" }, icon("brush"), size),
    undo,
    redo,
    iconButton("invert", "mask.invert", () => state.mask.invert()),
    iconButton("trash", "mask.clear", () => state.mask.clear()),
    h(
      "button",
      { type: "button", class: "button primary", onclick: ondone },
      icon("check"),
      h("span", { t: "mask.done" }),
    ),
  );

  function choose(tool) {
    state.tool = tool;
    tools.press(tool);
    ring.classList.toggle("erasing", tool === "eraser");
  }

  function resize(percent) {
    size.value = String(Math.max(1, Math.min(100, percent)));
    // From a few pixels to two thirds of the picture, in even steps of proportion.
    const longest = Math.max(board.view.width, board.view.height);
    state.diameter = Math.max(1, longest * 0.008 * 80 ** (Number(size.value) / 100));
    showRing();
  }

  function showRing() {
    const { cursor, diameter } = state;
    ring.hidden = !cursor || !state.isOn;
    if (!cursor) return;
    const percent = (value, side) => `${(100 * value) / board.view[side]}%`;
    ring.style.left = percent(cursor.x, "width");
    ring.style.top = percent(cursor.y, "height");
    ring.style.width = percent(diameter, "width");
  }

  function paintTo(point) {
    state.mask.stroke(state.last ?? point, point, state.diameter, state.tool === "eraser");
    state.last = point;
  }

  function finish() {
    if (!state.last) return;
    state.last = null;
    state.mask.end();
    refresh();
  }

  function refresh() {
    undo.disabled = state.mask.done.length === 0;
    redo.disabled = state.mask.undone.length === 0;
  }

  const on = (name, listener) =>
    board.element.addEventListener(name, (event) => state.isOn && listener(event));
  on("pointerdown", (event) => {
    if (event.button !== 0 || isPinching(board)) return;
    board.element.setPointerCapture(event.pointerId);
    state.mask.begin();
    state.cursor = board.inPicture(event);
    paintTo(state.cursor);
    showRing();
  });
  on("pointermove", (event) => {
    if (isPinching(board)) return finish();
    const moves = event.getCoalescedEvents?.() ?? [];
    for (const move of moves.length > 0 ? moves : [event]) {
      state.cursor = board.inPicture(move);
      if (state.last) paintTo(state.cursor);
    }
    showRing();
  });
  for (const name of ["pointerup", "pointercancel"]) on(name, finish);
  on("pointerleave", () => {
    if (!state.last) state.cursor = null;
    showRing();
  });
  on("keydown", (event) => key(event));
  on("keyup", (event) => event.key === " " && finish());
  size.addEventListener("input", () => resize(Number(size.value)));

  const keys = {
    b: () => choose("brush"),
    e: () => choose("eraser"),
    i: () => state.mask.invert(),
    "[": () => resize(Number(size.value) - 5),
    "]": () => resize(Number(size.value) + 5),
    Delete: () => state.mask.clear(),
    Escape: ondone,
    Enter: ondone,
    " ": () => {
      if (!state.last) state.mask.begin();
      state.cursor ??= { x: board.view.width / 2, y: board.view.height / 2 };
      paintTo(state.cursor);
      showRing();
    },
  };

  function key(event) {
    if (event.target !== board.element) return;
    const isCommand = event.ctrlKey || event.metaKey;
    if (isCommand && event.key.toLowerCase() === "z") event.shiftKey ? state.mask.redo() : state.mask.undo();
    else if (!isCommand && event.key.startsWith("Arrow")) moveCursor(event);
    else if (!isCommand && event.key in keys) keys[event.key]();
    else return;
    event.preventDefault();
  }

  function moveCursor(event) {
    const { width, height } = board.view;
    const step = Math.max(width, height) * (event.shiftKey ? 0.08 : 0.02);
    const [x, y] = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    const from = state.cursor ?? { x: width / 2, y: height / 2 };
    state.cursor = {
      x: Math.max(0, Math.min(width, from.x + x * step)),
      y: Math.max(0, Math.min(height, from.y + y * step)),
    };
    if (state.last) paintTo(state.cursor);
    showRing();
  }

  return {
    bar,
    ring,
    refresh,
    /** Paints on `mask` from now on. */
    start(mask) {
      Object.assign(state, { mask, isOn: true, cursor: null, last: null });
      resize(Number(size.value));
      refresh();
      showRing();
    },
    stop() {
      state.isOn = false;
      showRing();
    },
  };
}
