// Pictures to begin with: drawings, made as large as the model works.
import { h } from "./dom.js";
import { canvasOf, fileOf, imageAt, pictureOf } from "./files.js";
import { t } from "./i18n.js";
import { useAlone } from "./pictures.js";
import { currentModel, store } from "./store.js";

const SAMPLES = [
  {
    name: "landscape",
    prompts: ["give it a vintage look", "make it sepia"],
    otherwise: "sample.landscapePrompt",
  },
  {
    name: "shapes",
    prompts: ["change the background to green", "turn the red circle blue"],
    otherwise: "sample.shapesPrompt",
  },
];
/** The largest that a drawing is made, in pixels. */
const LARGEST_AREA = 1024 * 1024;

const addressOf = (name) => new URL(`../samples/${name}.svg`, import.meta.url).href;

/** A button for each. */
export function sampleButtons() {
  const buttons = SAMPLES.map((sample) =>
    h(
      "button",
      { type: "button", class: "sample", label: `sample.${sample.name}`, onclick: () => use(sample) },
      h("img", { src: addressOf(sample.name), alt: "", width: "112", height: "90" }),
    ),
  );
  return h("div", { class: "sample-row" }, buttons);
}

/** Takes a drawing as the input, with words that the model follows. */
async function use({ name, prompts, otherwise }) {
  const model = currentModel();
  const drawing = await imageAt(addressOf(name));
  const { naturalWidth: across, naturalHeight: down } = drawing;
  const area = Math.min(LARGEST_AREA, model?.image_area ?? LARGEST_AREA);
  const side = (length) => Math.round((length * Math.sqrt(area / (across * down))) / 8) * 8;
  const { canvas, context } = canvasOf(side(across), side(down));
  context.drawImage(drawing, 0, 0, canvas.width, canvas.height);
  useAlone(await pictureOf(await fileOf(canvas), `${name}.png`));
  if (store.get("prompt") === "") {
    const known = model?.instructions ?? [];
    store.set({ prompt: prompts.find((prompt) => known.includes(prompt)) ?? t(otherwise) });
  }
  document.getElementById("go").focus();
}
