// The requests of n8n and LibreChat, which are too large to install, sent as they do: with
// the same libraries, fields and order (n8n 2.41.1's OpenAI node; LibreChat's OpenAI image tools).
//
//   node replay.mjs                 sends them to the server and looks at the answers
//   node replay.mjs --record DIR    writes their bytes to DIR, for tests/it/http_clients.rs
import fs from 'node:fs';
import net from 'node:net';
import path from 'node:path';
import { Readable } from 'node:stream';
import axios from 'axios';
import FormData from 'form-data';
import OpenAI from 'openai';
import { apiKey, check, expectBase64, expectUrl, finish, origin, png } from './checks.mjs';

const folder = process.argv[2] === '--record' ? process.argv[3] : undefined;
// As it comes from the clients; a smaller one where the model is a real one.
const size = folder ? '1024x1024' : '64x64';
const AZURE_VERSION = '2025-04-01-preview';
const file = { filename: 'photo.png', contentType: 'image/png' };
const n8nHeaders = { Authorization: `Bearer ${apiKey}`, 'OpenAI-Organization': '' };

function n8nGenerate(model, options) {
  const response_format = model.startsWith('gpt-image') ? undefined : options.returnImageUrls ? 'url' : 'b64_json';
  const { returnImageUrls, ...others } = options;
  const body = { prompt: 'A cute cat', model, response_format, ...others };
  return (to) => axios.post(`${to}/v1/images/generations`, body, { headers: n8nHeaders });
}

function n8nEdit(model) {
  return (to) => {
    const form = new FormData();
    const isGpt = model.includes('gpt-image');
    form.append(isGpt ? 'image[]' : 'image', png, file);
    form.append('prompt', 'Make it red');
    form.append('model', model);
    form.append('n', '1');
    form.append('size', size);
    if (model.includes('dall-e')) form.append('response_format', 'url');
    if (isGpt) form.append('background', 'auto');
    if (isGpt) form.append('input_fidelity', 'low');
    if (isGpt) form.append('output_format', 'png');
    form.append('output_compression', '100');
    if (isGpt) form.append('quality', 'auto');
    return axios.post(`${to}/v1/images/edits`, form, { headers: { ...n8nHeaders, ...form.getHeaders() } });
  };
}

function libreChatGenerate(settings) {
  return async (to) => {
    const openai = new OpenAI({ apiKey, maxRetries: 0, ...settings(to) });
    const data = await openai.images.generate({
      model: 'gpt-image-1', prompt: 'A cute cat', n: 1, background: 'auto', output_format: 'png',
      output_compression: undefined, quality: 'auto', size,
    });
    return { data };
  };
}

function libreChatEdit(baseURL, keyHeader, params) {
  return (to) => {
    const form = new FormData();
    form.append('model', 'gpt-image-1');
    form.append('prompt', 'Make it red');
    form.append('quality', 'auto');
    form.append('size', 'auto');
    // A download: its length is not known, so the body is sent in chunks.
    form.append('image[]', Readable.from([png.subarray(0, 100), png.subarray(100)]), file);
    const headers = { ...form.getHeaders(), ...keyHeader };
    return axios.post('/images/edits', form, { headers, baseURL: `${to}${baseURL}`, params });
  };
}

const deployment = '/openai/deployments/gpt-image-1';
const azure = (to) => ({
  baseURL: `${to}${deployment}`,
  defaultQuery: { 'api-version': AZURE_VERSION },
  defaultHeaders: { 'api-key': apiKey, 'Content-Type': 'application/json' },
});

const REQUESTS = {
  'n8n-generate-dall-e-3': [n8nGenerate('dall-e-3', { size, quality: 'standard', style: 'vivid' }), 'base64'],
  'n8n-generate-dall-e-2-urls': [n8nGenerate('dall-e-2', { size: folder ? '256x256' : size, n: 1, returnImageUrls: true }), 'url'],
  'n8n-generate-gpt-image': [n8nGenerate('gpt-image-1', { quality: 'medium', size }), 'base64'],
  'n8n-edit-dall-e-2': [n8nEdit('dall-e-2'), 'url'],
  'n8n-edit-gpt-image': [n8nEdit('gpt-image-1'), 'base64'],
  'librechat-generate': [libreChatGenerate((to) => ({ baseURL: `${to}/v1` })), 'base64'],
  'librechat-generate-azure': [libreChatGenerate(azure), 'base64'],
  'librechat-edit': [libreChatEdit('/v1', { Authorization: `Bearer ${apiKey}` }), 'base64'],
  'librechat-edit-azure': [libreChatEdit(deployment, { 'api-key': apiKey }, { 'api-version': AZURE_VERSION }), 'base64'],
};

// Writes down what is sent, and answers as soon as it has stopped.
async function record(send, target) {
  const received = [];
  const server = net.createServer((socket) => {
    socket.on('data', (data) => {
      received.push(data);
      clearTimeout(server.timer);
      server.timer = setTimeout(() => {
        const body = '{"data":[]}';
        socket.end(`HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: ${body.length}\r\n\r\n${body}`);
      }, 300);
    });
  });
  await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
  await send(`http://127.0.0.1:${server.address().port}`).catch(() => {});
  server.close();
  fs.writeFileSync(target, Buffer.concat(received));
}

for (const [name, [send, way]] of Object.entries(REQUESTS)) {
  if (folder) {
    await record(send, path.join(folder, `${name}.http`));
    continue;
  }
  await check(name, async () => {
    const item = (await send(origin)).data.data[0];
    await (way === 'url' ? expectUrl(item.url) : expectBase64(item.b64_json));
  });
}
if (folder) process.exit(0);
finish();
