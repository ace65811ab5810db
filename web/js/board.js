// The board on which a picture lies: as large as fits, and closer by wheel, fingers or keys.
import { h } from "./dom.js";

/** Small pictures are shown at most so many times as large. */
const LARGEST_FIT = 5;
const CLOSEST = 32;
/** From so many screen pixels for one of the picture, pixels are shown as squares. */
const SQUARES_FROM = 6;

/** A board; `frame` is the element that has the picture's place and size. */
export function createBoard() {
  const frame = h("div", { class: "frame" });
  const element = h("div", { class: "board", tabindex: "0", role: "group", label: "stage.board" }, frame);
  const view = { width: 1, height: 1, fit: 1, zoom: 1, x: 0, y: 0 };
  const listeners = new Set();

  function place() {
    const { width, height, fit, zoom, x, y } = view;
    frame.style.width = `${width * fit}px`;
    frame.style.height = `${height * fit}px`;
    frame.style.transform = `translate(-50%, -50%) translate(${x}px, ${y}px) scale(${zoom})`;
    frame.style.setProperty("--zoom", zoom);
    frame.classList.toggle("squares", fit * zoom >= SQUARES_FROM);
    for (const listener of listeners) listener(view);
  }

  function refit() {
    const style = getComputedStyle(element);
    const room = {
      width: element.clientWidth - 2 * Number.parseFloat(style.paddingLeft),
      height: element.clientHeight - 2 * Number.parseFloat(style.paddingTop),
    };
    view.fit = Math.max(0.01, Math.min(room.width / view.width, room.height / view.height, LARGEST_FIT));
    place();
  }

  /** Keeps the picture within reach. */
  function bounded() {
    const spare = (side) =>
      Math.max(
        0,
        (view[side] * view.fit * view.zoom -
          (side === "width" ? element.clientWidth : element.clientHeight)) /
          2 +
          40,
      );
    const limit = (value, most) => (view.zoom <= 1 ? 0 : Math.max(-most, Math.min(most, value)));
    view.x = limit(view.x, spare("width"));
    view.y = limit(view.y, spare("height"));
  }

  const board = {
    element,
    frame,
    view,
    /** Tells of every change of what is seen. */
    onView: (listener) => listeners.add(listener),
    /** Lies a picture of this size down; one of another size is seen as a whole. */
    setSize(width, height) {
      if (width === view.width && height === view.height) return;
      Object.assign(view, { width, height, zoom: 1, x: 0, y: 0 });
      refit();
    },
    fit() {
      Object.assign(view, { zoom: 1, x: 0, y: 0 });
      place();
    },
    /** One pixel of the picture as one of the screen. */
    actualSize() {
      board.zoomTo(1 / view.fit / devicePixelRatio);
    },
    zoomBy: (factor, at) => board.zoomTo(view.zoom * factor, at),
    /** Goes closer, with the point `at` (in the window) where it is. */
    zoomTo(zoom, at) {
      const wanted = Math.max(Math.min(1, 1 / view.fit / devicePixelRatio), Math.min(CLOSEST, zoom));
      const rect = element.getBoundingClientRect();
      const from = at ?? { x: rect.left + rect.width / 2, y: rect.top + rect.height / 2 };
      const offset = { x: from.x - rect.left - rect.width / 2, y: from.y - rect.top - rect.height / 2 };
      const factor = wanted / view.zoom;
      view.x = offset.x - (offset.x - view.x) * factor;
      view.y = offset.y - (offset.y - view.y) * factor;
      view.zoom = wanted;
      bounded();
      place();
    },
    pan(x, y) {
      view.x += x;
      view.y += y;
      bounded();
      place();
    },
    /** Where a point of the window is in the picture, in its pixels. */
    inPicture({ clientX, clientY }) {
      const rect = frame.getBoundingClientRect();
      return {
        x: ((clientX - rect.left) / rect.width) * view.width,
        y: ((clientY - rect.top) / rect.height) * view.height,
      };
    },
  };
  new ResizeObserver(refit).observe(element);
  element.addEventListener("wheel", (event) => zoomByWheel(board, event), { passive: false });
  pinch(board);
  element.addEventListener("keydown", (event) => zoomByKey(board, event));
  return board;
}

function zoomByWheel(board, event) {
  // On a phone's page, which scrolls, a wheel without a key is for that.
  if (!event.ctrlKey && document.documentElement.scrollHeight > innerHeight + 4) return;
  event.preventDefault();
  const lines = event.deltaMode === 1 ? 16 : 1;
  board.zoomBy(Math.exp(-event.deltaY * lines * (event.ctrlKey ? 0.01 : 0.002)), {
    x: event.clientX,
    y: event.clientY,
  });
}

function zoomByKey(board, event) {
  if (
    event.ctrlKey ||
    event.metaKey ||
    event.altKey ||
    event.target !== board.element ||
    event.defaultPrevented
  )
    return;
  const steps = {
    "+": () => board.zoomBy(1.25),
    "=": () => board.zoomBy(1.25),
    "-": () => board.zoomBy(0.8),
    0: () => board.fit(),
    1: () => board.actualSize(),
  };
  const pans = { ArrowLeft: [60, 0], ArrowRight: [-60, 0], ArrowUp: [0, 60], ArrowDown: [0, -60] };
  if (event.key in steps) steps[event.key]();
  else if (event.key in pans && board.view.zoom > 1) board.pan(...pans[event.key]);
  else return;
  event.preventDefault();
}

/** Two fingers zoom and move, whatever one finger does. */
function pinch(board) {
  const fingers = new Map();
  const state = () => {
    const [one, two] = [...fingers.values()];
    return {
      x: (one.x + two.x) / 2,
      y: (one.y + two.y) / 2,
      apart: Math.hypot(one.x - two.x, one.y - two.y),
    };
  };
  const element = board.element;
  element.addEventListener("pointerdown", (event) => {
    if (event.pointerType === "touch") fingers.set(event.pointerId, { x: event.clientX, y: event.clientY });
    element.classList.toggle("pinching", fingers.size > 1);
  });
  element.addEventListener("pointermove", (event) => {
    if (!fingers.has(event.pointerId)) return;
    const before = fingers.size === 2 ? state() : null;
    fingers.set(event.pointerId, { x: event.clientX, y: event.clientY });
    if (!before) return;
    const after = state();
    board.pan(after.x - before.x, after.y - before.y);
    board.zoomBy(after.apart / before.apart, after);
  });
  const lift = (event) => {
    fingers.delete(event.pointerId);
    element.classList.toggle("pinching", fingers.size > 1);
  };
  for (const name of ["pointerup", "pointercancel", "pointerleave"]) element.addEventListener(name, lift);
}

/** Whether two fingers are on the board. */
export const isPinching = (board) => board.element.classList.contains("pinching");
