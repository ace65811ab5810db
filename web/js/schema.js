// What a request may say: read from the server's OpenAPI document, so that it is never out of
// date, and from what its models say of themselves.
import { currentModel, store } from "./store.js";

/** The bodies of the ways to make pictures. */
const BODIES = { edit: "EditForm", generate: "GenerationJson", vary: "VariationForm" };
export const ENDPOINTS = { edit: "edits", generate: "generations", vary: "variations" };

/** Fields that the page has controls of its own for, or that are its own business. */
const OWN = new Set([
  "image",
  "images",
  "picture",
  "mask",
  "prompt",
  "model",
  "n",
  "size",
  "quality",
  "seed",
  "background",
  "response_format",
  "store",
  "stream",
  "partial_images",
]);

/** What the models can be asked for: `edit`, `generate`, `vary`. */
export function modes() {
  const { info } = store.get("server");
  const { image_edit, text_to_image, image_variation } = info.capabilities;
  const offered = { edit: image_edit, generate: text_to_image, vary: image_variation };
  return Object.keys(offered).filter((mode) => offered[mode]);
}

/** Whether a model can do what a mode asks for. */
export function can(model, mode) {
  const { image_edit, text_to_image, image_variation } = model.capabilities;
  return { edit: image_edit, generate: text_to_image, vary: image_variation }[mode];
}

/** Whether what is asked for may have a mask. */
export const takesMask = () => store.get("mode") === "edit" && Boolean(currentModel()?.capabilities.mask);

/** How many input pictures may be sent. */
export function mostPictures() {
  const mode = store.get("mode");
  if (mode === "generate") return 0;
  return mode === "vary" ? 1 : (currentModel()?.max_input_images ?? 1);
}

/** The schema of a field in the current mode; undefined if the server does not know it there. */
export const fieldOf = (name) => properties()[name];

function properties() {
  const body = store.get("server").document.components.schemas[BODIES[store.get("mode")]];
  return body?.properties ?? {};
}

/** The parameters without a control of the page's own, as [name, schema]. */
export function advanced() {
  const model = currentModel();
  const others = Object.entries(properties()).filter(([name]) => !OWN.has(name));
  return others.filter(([name]) => !model || concerns(name, model));
}

/** Whether a parameter means something to a model. */
function concerns(name, model) {
  const masks = model.capabilities.mask && store.get("mode") === "edit";
  switch (name) {
    case "preserve_unmasked":
    case "padding_mask_crop":
      return masks;
    case "strength":
      return masks || store.get("mode") === "vary" || model.edit_kind === "image_to_image";
    case "layers":
      return model.edit_kind === "layers";
    case "true_cfg_scale":
    case "guidance_scale":
      return model.guidance_parameter === name;
    case "loras":
    case "cache_threshold":
    case "schedule_shift":
      return model.is_tunable;
    default:
      return true;
  }
}

/** The plain type of a schema, which may allow null besides. */
export function typeOf(schema) {
  const types = [schema.type].flat().filter((type) => type !== "null");
  return types[0] ?? (schema.enum ? "string" : "object");
}

/** What a parameter is if nobody says anything, as a text; empty if that is not known. */
export function defaultOf(name, schema) {
  const model = currentModel();
  const quality = store.get("values").quality;
  const preset = model?.qualities.find((one) => one.quality === quality);
  const usual = model?.defaults ?? {};
  const known = {
    num_inference_steps: preset?.num_inference_steps ?? usual.num_inference_steps,
    true_cfg_scale: preset?.guidance ?? usual.guidance,
    guidance_scale: preset?.guidance ?? usual.guidance,
    strength: usual.strength,
  };
  const value = known[name] ?? schema.default;
  return value === undefined || value === null ? "" : String(value);
}
