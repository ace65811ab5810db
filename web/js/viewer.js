// A finished picture beside the one that it was made from: a slider between them, what differs,
// and layers as a stack.

import { isPinching } from "./board.js";
import { h } from "./dom.js";
import { canvasOf, imageAt } from "./files.js";
import { number, t } from "./i18n.js";

/** Differences are shown so many times as strong. */
const AMPLIFIED = 4;
/** Channels that differ by more than this count as changed. */
const NOTICED = 3;

/** Shows results on `board`, in the way that `setWay` says: `compare`, `result` or `difference`. */
export function createViewer(board) {
  const state = { result: null, way: "compare", share: 50, hidden: new Set() };
  const slider = h("input", {
    type: "range",
    min: "0",
    max: "100",
    step: "0.5",
    value: "50",
    class: "split",
    label: "viewer.split",
  });
  const handle = h("div", { class: "split-handle", "aria-hidden": "true" }, h("span", {}));
  const names = {
    before: h("span", { class: "name before", t: "viewer.before" }),
    after: h("span", { class: "name after", t: "viewer.after" }),
  };
  const note = h("p", { class: "difference-note", role: "status" });

  slider.addEventListener("input", () => split(Number(slider.value)));
  board.element.addEventListener("pointerdown", (event) => drag(event));

  function split(share) {
    state.share = Math.max(0, Math.min(100, share));
    slider.value = String(state.share);
    board.frame.style.setProperty("--split", `${state.share}%`);
    names.before.classList.toggle("gone", state.share < 12);
    names.after.classList.toggle("gone", state.share > 88);
  }

  /** In a comparison the pointer moves the border; else, or from afar of it, a close picture. */
  function drag(event) {
    if (!state.result || event.button !== 0 || event.target.closest("button, input")) return;
    const isClose = board.view.zoom > 1;
    const isBorder = state.way === "compare" && (!isClose || event.target.closest(".split-handle"));
    if (!isBorder && !isClose) return;
    event.preventDefault();
    board.element.setPointerCapture(event.pointerId);
    const move = (moved) => {
      if (isPinching(board)) return;
      if (isBorder) split((100 * board.inPicture(moved).x) / board.view.width);
      else board.pan(moved.movementX, moved.movementY);
    };
    const end = () => {
      board.element.removeEventListener("pointermove", move);
      board.element.removeEventListener("pointerup", end);
    };
    if (isBorder) move(event);
    board.element.addEventListener("pointermove", move);
    board.element.addEventListener("pointerup", end);
  }

  function layers({ outputs }) {
    return outputs
      .map((output, index) =>
        h("img", {
          src: output.url,
          alt: t("viewer.layer", { number: index + 1 }),
          class: "whole layer",
          draggable: "false",
          "data-index": index,
        }),
      )
      .filter((_, index) => !state.hidden.has(index));
  }

  async function draw() {
    const { result } = state;
    const output = result.outputs[result.index];
    board.setSize(output.width, output.height);
    board.frame.className = `frame result ${state.way}`;
    if (result.isLayered && state.way === "stack") {
      board.frame.replaceChildren(...layers(result));
      return;
    }
    const after = h("img", {
      src: output.url,
      alt: t("viewer.alt", { prompt: result.entry.prompt }),
      class: "whole after-image",
      draggable: "false",
    });
    const { before } = result;
    if (!before || state.way === "result" || state.way === "stack") {
      board.frame.replaceChildren(after);
      return;
    }
    const earlier = h("img", {
      src: before.url,
      alt: t("viewer.altBefore"),
      class: "whole before-image",
      draggable: "false",
    });
    earlier.classList.add(await lyingOver(before, output));
    if (state.way === "difference") {
      const canvas = await difference(earlier, after, output, note);
      if (state.result === result && state.way === "difference") board.frame.replaceChildren(canvas, note);
      return;
    }
    board.frame.replaceChildren(earlier, after, names.before, names.after, slider, handle);
    split(state.share);
  }

  return {
    draw: () => draw(),
    setWay(way) {
      state.way = way;
      if (state.result) draw();
    },
    way: () => state.way,
    hidden: state.hidden,
    /** Shows a result, or none. */
    show(result) {
      const isNew = result?.entry !== state.result?.entry;
      state.result = result;
      if (isNew) {
        state.hidden.clear();
        state.share = 50;
      }
      if (result) draw();
    },
  };
}

/** How the input lies under the output: whole, where both have the same proportions; else cut to
 * them, or within them, as the page was told of the model. */
async function lyingOver(before, output) {
  const isAlike = Math.abs(before.width / before.height - output.width / output.height) < 0.02;
  if (isAlike) return "stretched";
  return output.fillsBeyond ? "within" : "cut";
}

/** What differs between two pictures, amplified. */
async function difference(before, after, { width, height }, note) {
  const read = async (image) => {
    const { canvas, context } = canvasOf(width, height, { willReadFrequently: true });
    const whole = await imageAt(image.src);
    const scale = image.classList.contains("within") ? Math.min : Math.max;
    const by =
      image.classList.contains("before-image") && !image.classList.contains("stretched")
        ? scale(width / whole.naturalWidth, height / whole.naturalHeight)
        : null;
    const size = by ? [whole.naturalWidth * by, whole.naturalHeight * by] : [width, height];
    context.drawImage(whole, (width - size[0]) / 2, (height - size[1]) / 2, ...size);
    return { canvas, context, image: context.getImageData(0, 0, width, height) };
  };
  const [one, two] = [await read(before), await read(after)];
  let changed = 0;
  for (let at = 0; at < two.image.data.length; at += 4) {
    let most = 0;
    for (let channel = at; channel < at + 3; channel += 1) {
      const apart = Math.abs(one.image.data[channel] - two.image.data[channel]);
      most = Math.max(most, apart);
      two.image.data[channel] = Math.min(255, apart * AMPLIFIED);
    }
    two.image.data[at + 3] = 255;
    if (most > NOTICED) changed += 1;
  }
  two.context.putImageData(two.image, 0, 0);
  const share = (100 * changed) / (width * height);
  note.textContent = t("viewer.changed", { share: number(share, share < 10 ? 1 : 0), factor: AMPLIFIED });
  two.canvas.className = "whole";
  two.canvas.setAttribute("role", "img");
  two.canvas.setAttribute("aria-label", note.textContent);
  return two.canvas;
}
