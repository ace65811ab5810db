// `AzureOpenAI` of the package openai.
import OpenAI, { AzureOpenAI, toFile } from 'openai';
import { apiKey, check, errorOf, expect, expectBase64, expectUrl, finish, origin, png, prompt } from './checks.mjs';

const settings = { apiKey, apiVersion: '2025-04-01-preview', maxRetries: 0 };
const byEndpoint = new AzureOpenAI({ ...settings, endpoint: origin });
const byDeployment = new AzureOpenAI({ ...settings, endpoint: origin, deployment: 'gpt-image-1' });
const image = () => toFile(png, 'a.png', { type: 'image/png' });

await check('generate, the model as deployment', async () => {
  const reply = await byEndpoint.images.generate({ model: 'gpt-image-1', prompt, size: '64x64' });
  expectBase64(reply.data[0].b64_json);
});

await check('edit, the model as deployment', async () => {
  const reply = await byEndpoint.images.edit({ model: 'gpt-image-1', prompt, image: await image() });
  expectBase64(reply.data[0].b64_json);
});

await check('a name with slashes, which this client does not encode', async () => {
  const model = (await byEndpoint.models.list()).data[0].id;
  const reply = await byEndpoint.images.edit({ model, prompt, image: await image() });
  expectBase64(reply.data[0].b64_json);
  const error = await errorOf(async () => byEndpoint.images.edit({ model: 'x', prompt, image: await image() }));
  expect(error.code === 'model_not_found', error.message);
});

await check('the client with a deployment', async () => {
  const generated = await byDeployment.images.generate({ prompt, size: '64x64' });
  expectBase64(generated.data[0].b64_json);
  const edited = await byDeployment.images.edit({ model: 'whatever', prompt, image: [await image()] });
  expectBase64(edited.data[0].b64_json);
});

await check('a base URL that ends with the deployment', async () => {
  const azure = new AzureOpenAI({ ...settings, baseURL: `${origin}/openai/deployments/gpt-image-1` });
  expectBase64((await azure.images.edit({ prompt, image: await image() })).data[0].b64_json);
});

await check('dall-e-3 by address', async () => {
  const reply = await byEndpoint.images.generate({ model: 'dall-e-3', prompt, size: '64x64' });
  await expectUrl(reply.data[0].url);
});

await check('stream', async () => {
  const events = await byEndpoint.images.edit({
    model: 'gpt-image-1', prompt, image: await image(), stream: true, partial_images: 1,
  });
  let last;
  for await (const event of events) last = event.type;
  expect(last === 'image_edit.completed', last);
});

await check('a wrong key, with a large picture', async () => {
  const wrong = new AzureOpenAI({ ...settings, apiKey: 'wrong', endpoint: origin });
  const large = await toFile(Buffer.alloc(49 << 20), 'a.png', { type: 'image/png' });
  const error = await errorOf(() => wrong.images.edit({ model: 'gpt-image-1', prompt, image: large }));
  expect(error.status === 401 && error.message.includes('api-key'), `${error.name} ${error.message}`);
});

await check("the v1 address, with OpenAI's own class", async () => {
  const plain = new OpenAI({ apiKey, baseURL: `${origin}/openai/v1` });
  expectBase64((await plain.images.edit({ model: 'gpt-image-1', prompt, image: await image() })).data[0].b64_json);
});

finish();
