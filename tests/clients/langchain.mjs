// LangChain's DallEAPIWrapper for node.
import { DallEAPIWrapper } from '@langchain/openai';
import { apiKey, check, expect, expectBase64, expectUrl, finish, origin, prompt } from './checks.mjs';

const wrapper = (settings) => new DallEAPIWrapper({
  apiKey, baseUrl: `${origin}/v1`, openAIApiKey: apiKey, n: 1, size: '64x64', ...settings,
});

await check('as it comes: an address', async () => {
  await expectUrl(await wrapper().invoke(prompt));
});

await check('base64', async () => {
  expectBase64(await wrapper({ dallEResponseFormat: 'b64_json' }).invoke(prompt));
});

await check('several', async () => {
  const items = await wrapper({ n: 2 }).invoke(prompt);
  expect(items.length === 2, JSON.stringify(items).slice(0, 100));
  await expectUrl(items[1].image_url.url ?? items[1].image_url);
});

finish();
