// The input pictures: dropped, pasted or chosen, in an order that can be changed.
import { announce, fill, h, icon, iconButton } from "./dom.js";
import { follow } from "./fields.js";
import { pictureOf, recipeIn } from "./files.js";
import { t } from "./i18n.js";
import { offerRecipe } from "./recipe.js";
import { mostPictures } from "./schema.js";
import { currentModel, store } from "./store.js";

/** Takes files in; a single picture that says how it was made may be made again instead. */
export async function addFiles(files) {
  const pictures = [];
  for (const file of files) {
    const name = file.name || "picture.png";
    const picture = await pictureOf(file, name);
    if (picture) pictures.push(picture);
    else store.set({ faults: { image: t("fault.noImage", { name }) } });
  }
  if (pictures.length === 0) return;
  const recipe = pictures.length === 1 ? await recipeIn(pictures[0].blob) : null;
  if (recipe) offerRecipe(recipe, pictures[0], () => add(pictures));
  else add(pictures);
}

/** Adds pictures; where only so many may be, the last ones stay. */
export function add(pictures) {
  if (store.get("mode") === "generate") store.set({ mode: "edit" });
  const most = Math.max(1, mostPictures());
  const all = most === 1 ? pictures.slice(-1) : [...store.get("pictures"), ...pictures];
  if (all.length > most) announce("pictures.most", { count: most });
  const kept = all.slice(0, most);
  store.set({ pictures: kept, shown: kept.length - 1, view: "input", faults: {} });
}

/** Has one picture alone as the input. */
export function useAlone(picture) {
  store.set({
    pictures: [picture],
    shown: 0,
    view: "input",
    mode: store.get("mode") === "vary" ? "vary" : "edit",
  });
}

/** Opens the dialog in which files are chosen. */
export function choose() {
  const input = h("input", { type: "file", accept: "image/*", multiple: true });
  input.addEventListener("change", () => addFiles([...input.files]));
  input.click();
}

/** Takes in what is dropped anywhere, or pasted. */
export function listenForFiles(root) {
  let depth = 0;
  const hasFiles = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
  const mark = (change) => {
    depth = Math.max(0, depth + change);
    root.classList.toggle("dropping", depth > 0);
  };
  root.addEventListener("dragenter", (event) => hasFiles(event) && mark(1));
  root.addEventListener("dragleave", (event) => hasFiles(event) && mark(-1));
  root.addEventListener("dragover", (event) => hasFiles(event) && event.preventDefault());
  root.addEventListener("drop", (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    mark(-depth);
    addFiles([...event.dataTransfer.files]);
  });
  document.addEventListener("paste", (event) => {
    const files = [...(event.clipboardData?.files ?? [])];
    if (files.length === 0) return;
    event.preventDefault();
    addFiles(files);
  });
}

/** The list, with a button that adds to it. */
export function pictureList() {
  const list = h("ol", { class: "picture-list", label: "pictures.list" });
  const adder = h(
    "button",
    { type: "button", class: "add-picture", label: "pictures.add", onclick: choose },
    icon("plus"),
  );
  const notes = h("div", { class: "notes" });
  const element = h(
    "div",
    { class: "field", "data-field": "image mask" },
    h("h2", { class: "caption", t: "pictures.title" }),
    list,
    notes,
  );
  follow(["image", "mask"], adder, notes);
  store.on(["pictures", "shown", "mode", "model", "server"], ({ pictures, shown, mode }) => {
    element.hidden = mode === "generate";
    const items = pictures.map((picture, index) => itemOf(picture, index, pictures.length, index === shown));
    const isFull = currentModel() !== null && pictures.length >= mostPictures();
    fill(list, items, isFull ? null : h("li", {}, adder));
  });
  return element;
}

function itemOf(picture, index, count, isShown) {
  const show = () => store.set({ shown: index, view: "input" });
  const image = h("img", { src: picture.url, alt: "", draggable: "false" });
  const name = t("pictures.show", { name: picture.name, number: index + 1 });
  const shower = h(
    "button",
    {
      type: "button",
      class: "picture",
      "aria-label": name,
      title: picture.name,
      "aria-pressed": isShown,
      onclick: show,
    },
    image,
  );
  const item = h(
    "li",
    { draggable: "true" },
    shower,
    iconButton("close", "pictures.remove", () => removeAt(index), { class: "icon-button small" }),
  );
  if (count > 1) item.append(h("span", { class: "number" }, String(index + 1)), movers(index, count));
  dragToMove(item, index);
  return item;
}

function movers(index, count) {
  const mover = (name, label, to) =>
    iconButton(name, label, () => move(index, to), {
      class: "icon-button small",
      disabled: to < 0 || to >= count,
    });
  return h(
    "span",
    { class: "movers" },
    mover("left", "pictures.forward", index - 1),
    mover("right", "pictures.back", index + 1),
  );
}

function dragToMove(item, index) {
  item.addEventListener("dragstart", (event) =>
    event.dataTransfer.setData("application/x-position", String(index)),
  );
  item.addEventListener("dragover", (event) => event.preventDefault());
  item.addEventListener("drop", (event) => {
    const from = event.dataTransfer.getData("application/x-position");
    if (from === "") return;
    event.preventDefault();
    event.stopPropagation();
    move(Number(from), index);
  });
}

function move(from, to) {
  const pictures = [...store.get("pictures")];
  pictures.splice(to, 0, ...pictures.splice(from, 1));
  store.set({ pictures, shown: to, view: "input" });
}

function removeAt(index) {
  const pictures = store.get("pictures").filter((_, at) => at !== index);
  const shown = Math.max(0, Math.min(store.get("shown"), pictures.length - 1));
  store.set({ pictures, shown, view: "input" });
}
