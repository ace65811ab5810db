// The call that makes a picture of the history again: for curl, and for OpenAI's Python library.
import { address } from "./api.js";
import { announce, button, h, iconButton, segmented } from "./dom.js";
import { save } from "./files.js";
import { t } from "./i18n.js";
import { fieldsOf, typedValue } from "./request.js";
import { ENDPOINTS } from "./schema.js";
import { store } from "./store.js";

/** Shows the calls for the picture of number `index` of an entry. */
export function showCode(entry, index) {
  const order = {
    ...entry,
    seed: index === 0 ? entry.seed : entry.outputs[index].seed,
    values: valuesFor(entry, index),
  };
  const files = filesOf(order);
  const texts = { curl: curlOf(order), python: pythonOf(order) };
  const code = h("code", {});
  let current = "curl";
  const show = (language) => {
    current = language;
    code.textContent = texts[language];
  };
  const copy = async () => {
    try {
      await navigator.clipboard.writeText(texts[current]);
      announce("code.copied");
    } catch {
      announce("result.notCopied");
    }
  };
  const tabs = segmented(
    "code.language",
    [
      ["curl", "curl"],
      ["python", "Python"],
    ],
    "curl",
    show,
  );
  const needed =
    files.length === 0
      ? null
      : h(
          "div",
          { class: "code-files" },
          h("p", { t: "code.files" }),
          files.map(({ name, blob }) =>
            button("download", "", () => save(blob, name), {
              class: "button quiet",
              "aria-label": t("code.save", { name }),
            }),
          ),
        );
  needed?.querySelectorAll("button span").forEach((word, at) => {
    word.textContent = files[at].name;
  });
  const dialog = h(
    "dialog",
    { class: "dialog wide", "aria-labelledby": "code-title" },
    h(
      "div",
      { class: "dialog-head" },
      h("h2", { id: "code-title", t: "code.title" }),
      iconButton("close", "close", () => dialog.close()),
    ),
    h("p", { t: "code.text" }),
    h("div", { class: "dialog-row" }, tabs, button("copy", "code.copy", copy)),
    h("pre", { tabindex: "0", label: "code.title", role: "region" }, code),
    needed,
  );
  show("curl");
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
}

/** One picture alone; of layers, which come of one request, all. */
function valuesFor(entry, index) {
  if (index === 0 && !entry.values.n) return entry.values;
  const { n: _, ...others } = entry.values;
  return others;
}

/** The files of the inputs, by names that differ. */
function filesOf({ inputs, mask }) {
  const names = new Set();
  const named = inputs.map(({ name, blob }) => {
    const plain = name.replace(/[^\p{L}\p{N}._-]+/gu, "-");
    const unique = names.has(plain) ? `${names.size + 1}-${plain}` : plain;
    names.add(unique);
    return { name: unique, blob };
  });
  return mask ? [...named, { name: "mask.png", blob: mask, isMask: true }] : named;
}

const quoted = (text) => `'${text.replaceAll("'", String.raw`'\''`)}'`;

function curlOf(order) {
  const url = address(store.get("server").endpoints[ENDPOINTS[order.mode]]);
  const lines = [`curl ${quoted(url.href)}`];
  if (keyIsNeeded()) lines.push('-H "Authorization: Bearer $DIFFUSER_API_KEY"');
  if (order.mode === "generate") {
    lines.push(
      "-H 'Content-Type: application/json'",
      "-H 'Accept: image/png'",
      `-d ${quoted(JSON.stringify(jsonOf(order)))}`,
    );
  } else {
    lines.push("-H 'Accept: image/png'");
    for (const { name, isMask } of filesOf(order))
      lines.push(`-F ${quoted(`${isMask ? "mask" : "image"}=@${name}`)}`);
    // What begins with @ or < would be a file to curl.
    for (const [name, text] of fieldsOf(order)) lines.push(`--form-string ${quoted(`${name}=${text}`)}`);
  }
  lines.push(`-o picture.${order.values.output_format ?? "png"}`);
  return lines.join(" \\\n  ");
}

const jsonOf = (order) =>
  Object.fromEntries(fieldsOf(order).map(([name, text]) => [name, typedValue(name, text)]));

const keyIsNeeded = () => Boolean(store.get("server").document.security);

/** Parameters that OpenAI's library knows; the others go into `extra_body`. */
const OPENAIS = new Set([
  "prompt",
  "model",
  "n",
  "size",
  "quality",
  "output_format",
  "output_compression",
  "background",
]);
const CALLS = { edit: "edit", generate: "generate", vary: "create_variation" };

function pythonOf(order) {
  const base = address(store.get("server").endpoints.models).href.replace(/\/models$/, "");
  const fields = Object.entries(jsonOf(order));
  const isOpenAis = ([name]) => OPENAIS.has(name) && !(order.mode === "vary" && name === "prompt");
  const own = fields.filter((one) => !isOpenAis(one));
  const opened = filesOf(order);
  const images = opened.filter(({ isMask }) => !isMask).map(({ name }) => `open(${literal(name)}, "rb")`);
  const image = images.length > 1 ? `[${images.join(", ")}]` : images[0];
  const mask = opened.find(({ isMask }) => isMask);
  const lines = [
    image ? `    image=${image},` : null,
    mask ? `    mask=open(${literal(mask.name)}, "rb"),` : null,
    ...fields.filter(isOpenAis).map(([name, value]) => `    ${name}=${literal(value)},`),
    `    extra_body={${own.map(([name, value]) => `${literal(name)}: ${literal(value)}`).join(", ")}},`,
  ];
  const key = keyIsNeeded() ? 'os.environ["DIFFUSER_API_KEY"]' : '"unused"';
  return [
    "import base64",
    keyIsNeeded() ? "import os" : null,
    "from openai import OpenAI",
    "",
    `client = OpenAI(base_url=${literal(base)}, api_key=${key})`,
    `result = client.images.${CALLS[order.mode]}(`,
    ...lines,
    ")",
    `open("picture.${order.values.output_format ?? "png"}", "wb").write(base64.b64decode(result.data[0].b64_json))`,
  ]
    .filter((line) => line !== null)
    .join("\n");
}

/** A value as Python writes it. */
function literal(value) {
  if (value === true) return "True";
  if (value === false) return "False";
  if (value === null) return "None";
  if (Array.isArray(value)) return `[${value.map(literal).join(", ")}]`;
  if (typeof value === "object")
    return `{${Object.entries(value)
      .map(([name, one]) => `${literal(name)}: ${literal(one)}`)
      .join(", ")}}`;
  return JSON.stringify(value);
}
