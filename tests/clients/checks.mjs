// What the scripts for node's clients share: a server, a picture, and checks with a name each.
import * as zlib from 'node:zlib';

export const origin = process.env.CLIENTS_ORIGIN;
export const apiKey = process.env.CLIENTS_KEY;
export const prompt = 'a red circle';

// A picture of 64x48 pixels, made once by checks.py.
export const png = Buffer.from(process.env.CLIENTS_PNG, 'base64');

let passed = 0;
let failed = 0;

export function expect(truth, what) {
  if (!truth) throw new Error(what);
}

export function expectPng(bytes) {
  expect(Buffer.from(bytes).subarray(1, 4).toString() === 'PNG', `no picture: ${String(bytes).slice(0, 40)}`);
}

export function expectBase64(text) {
  expect(typeof text === 'string' && text.length > 0, `no base64: ${String(text).slice(0, 80)}`);
  expectPng(Buffer.from(text, 'base64'));
}

// The picture is there, for whoever has the address.
export async function expectUrl(url) {
  expect(typeof url === 'string' && url.startsWith(origin), `no address: ${url}`);
  expectPng(await (await fetch(url)).arrayBuffer());
}

// Whatever `work` throws.
export async function errorOf(work) {
  try {
    await work();
  } catch (error) {
    return error;
  }
  throw new Error('this should have been refused');
}

export async function check(name, work) {
  const started = Date.now();
  try {
    await work();
    passed += 1;
    console.log(`PASS ${name} (${((Date.now() - started) / 1000).toFixed(1)} s)`);
  } catch (error) {
    failed += 1;
    console.log(`FAIL ${name}: ${error.name}: ${String(error.message).slice(0, 600)}`);
    if (process.env.VERBOSE) console.log(error);
  }
}

export function finish() {
  console.log(`${passed} passed, ${failed} failed`);
  process.exit(failed > 0 || passed === 0 ? 1 : 0);
}
