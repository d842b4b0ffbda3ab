// OpenAI's client for Node.js against a gateway: node client.mjs BASE_URL KEY MODEL
import OpenAI from "openai";

const [, , baseURL, apiKey, model] = process.argv;
const client = new OpenAI({ baseURL, apiKey, maxRetries: 0 });
const messages = [{ role: "user", content: "hi" }];

const answer = await client.chat.completions.create({ model, messages });
const stream = await client.chat.completions.create({
  model, messages, stream: true, stream_options: { include_usage: true },
});
let streamed = "", chunks = 0, usage = null;
for await (const chunk of stream) {
  chunks += 1;
  streamed += chunk.choices[0]?.delta?.content ?? "";
  usage = chunk.usage?.total_tokens ?? usage;
}
let failure = {};
try {
  await client.chat.completions.create({ model: "none", messages });
} catch (error) {
  failure = { status: error.status, code: error.code };
}
console.log(JSON.stringify({
  answer: answer.choices[0].message.content, streamed, chunks, usage, ...failure,
}));
