// Pictures as files: reading, measuring and writing them.

/** A picture as the list of inputs has it; null if the browser cannot show the file. */
export async function pictureOf(blob, name) {
  const url = URL.createObjectURL(blob);
  const image = new Image();
  image.src = url;
  try {
    await image.decode();
  } catch {
    URL.revokeObjectURL(url);
    return null;
  }
  return { id: newId(), name, blob, url, width: image.naturalWidth, height: image.naturalHeight };
}

/** A name that is not guessed twice. */
export const newId = () => {
  const numbers = crypto.getRandomValues(new Uint32Array(3));
  return [...numbers].map((number) => number.toString(36)).join("");
};

/** An image element that has been read. */
export async function imageAt(url) {
  const image = new Image();
  image.src = url;
  await image.decode();
  return image;
}

/** A canvas of this size, and what draws on it. */
export function canvasOf(width, height, options) {
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = height;
  return { canvas, context: canvas.getContext("2d", options) };
}

/** The file of what is on a canvas. */
export const fileOf = (canvas, type = "image/png") =>
  new Promise((resolve) => canvas.toBlob(resolve, type, 0.85));

/** The file that a text in base64 stands for. */
export function fromBase64(text, type) {
  const binary = atob(text);
  const bytes = new Uint8Array(binary.length);
  for (let index = 0; index < bytes.length; index += 1) bytes[index] = binary.charCodeAt(index);
  return new Blob([bytes], { type });
}

/** A small picture of `url`, its longer side `side`. */
export async function thumbnailOf(url, side = 176) {
  const image = await imageAt(url);
  const scale = Math.min(1, side / Math.max(image.naturalWidth, image.naturalHeight));
  const width = Math.max(1, Math.round(image.naturalWidth * scale));
  const height = Math.max(1, Math.round(image.naturalHeight * scale));
  const { canvas, context } = canvasOf(width, height);
  context.imageSmoothingQuality = "high";
  context.drawImage(image, 0, 0, width, height);
  return fileOf(canvas, "image/webp");
}

/** Saves a file. */
export function save(blob, name) {
  const url = URL.createObjectURL(blob);
  const link = document.createElement("a");
  link.href = url;
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

/** The ending of files of this type. */
export const endingOf = (blob) =>
  ({ "image/jpeg": "jpg", "image/webp": "webp", "image/png": "png" })[blob.type] ?? "png";

const PNG_SIGNATURE = [137, 80, 78, 71, 13, 10, 26, 10];
const RECIPE_KEYWORD = "diffuser-api";

/** How a PNG file of this server was made; null for any other. */
export async function recipeIn(blob) {
  const bytes = new Uint8Array(await blob.arrayBuffer());
  if (PNG_SIGNATURE.some((byte, index) => bytes[index] !== byte)) return null;
  const view = new DataView(bytes.buffer);
  const latin = new TextDecoder("latin1");
  for (let at = 8; at + 12 <= bytes.length; ) {
    const length = view.getUint32(at);
    const type = latin.decode(bytes.subarray(at + 4, at + 8));
    const content = bytes.subarray(at + 8, at + 8 + length);
    if (
      type === "iTXt" &&
      latin.decode(content.subarray(0, RECIPE_KEYWORD.length + 1)) === `${RECIPE_KEYWORD}\0`
    ) {
      return parseRecipe(new TextDecoder().decode(content.subarray(RECIPE_KEYWORD.length + 5)));
    }
    if (type === "IDAT") return null;
    at += 12 + length;
  }
  return null;
}

function parseRecipe(text) {
  try {
    // Seeds may have more digits than numbers here can hold.
    const seed = /"seed":(\d+)/.exec(text)?.[1] ?? "";
    return { ...JSON.parse(text), seed };
  } catch {
    return null;
  }
}
