// The AI SDK with its providers openai, openai-compatible and azure.
import { generateImage } from 'ai';
import { createOpenAI } from '@ai-sdk/openai';
import { createOpenAICompatible } from '@ai-sdk/openai-compatible';
import { createAzure } from '@ai-sdk/azure';
import { apiKey, check, errorOf, expect, expectPng, finish, origin, png, prompt } from './checks.mjs';

const baseURL = `${origin}/v1`;
const compatible = createOpenAICompatible({ name: 'diffuser', baseURL, apiKey });
const openai = createOpenAI({ baseURL, apiKey });
const azure = {
  'azure, by deployment': createAzure({ apiKey, baseURL: `${origin}/openai`, useDeploymentBasedUrls: true }),
  'azure, version 1': createAzure({ apiKey, baseURL: `${origin}/openai/v1` }),
  'azure, without a version': createAzure({ apiKey, baseURL: `${origin}/openai` }),
};
const models = Object.entries({
  openai: (id) => openai.image(id),
  'openai-compatible': (id) => compatible.imageModel(id),
  ...Object.fromEntries(Object.entries(azure).map(([name, provider]) => [name, (id) => provider.image(id)])),
});
const generate = (model, settings = {}) => generateImage({ model, prompt, maxRetries: 0, ...settings });
const edit = { prompt: { text: prompt, images: [png] } };

for (const [provider, model] of models) {
  for (const id of ['gpt-image-1', 'qwen-image', 'dall-e-3']) {
    await check(`${provider}: generate with ${id}`, async () => {
      const { image } = await generate(model(id), { size: '64x64' });
      expectPng(image.uint8Array);
    });
  }
  await check(`${provider}: edit`, async () => {
    const { image } = await generate(model('gpt-image-1'), edit);
    expectPng(image.uint8Array);
  });
}

await check('several pictures, in one request and in several', async () => {
  for (const id of ['gpt-image-1', 'qwen-image']) {
    const { images } = await generate(openai.image(id), { n: 3, size: '64x64' });
    expect(images.length === 3, `${images.length} pictures`);
  }
});

await check('parameters of this server, through openai-compatible', async () => {
  const settings = { size: '64x64', providerOptions: { diffuser: { seed: 7, num_inference_steps: 1 } } };
  const pictures = [];
  for (let i = 0; i < 2; i += 1) {
    pictures.push((await generate(compatible.imageModel('qwen-image'), settings)).image.base64);
  }
  expect(pictures[0] === pictures[1], 'the same seed should make the same picture');
});

await check('edits by dall-e-2: base64 for openai-compatible, refused by openai, as with OpenAI itself', async () => {
  const { image } = await generate(compatible.imageModel('dall-e-2'), edit);
  expectPng(image.uint8Array);
  // This provider asks for no format in edits and reads base64 only; OpenAI's dall-e-2 answers with an address.
  const error = await errorOf(() => generate(openai.image('dall-e-2'), edit));
  expect(error.message.includes('Invalid JSON response'), error.message);
});

await check('an error keeps its words', async () => {
  const error = await errorOf(() => generate(compatible.imageModel('no-such-model'), { size: '64x64' }));
  expect(error.message.includes("'no-such-model'"), error.message);
});

finish();
