// OpenAI's client for Node.js against a gateway: node client.mjs BASE_URL KEY MODEL EMBEDDER
import OpenAI, { toFile } from "openai";

const [, , baseURL, apiKey, model, embedder] = process.argv;
const client = new OpenAI({ baseURL, apiKey, maxRetries: 0 });
const messages = [{ role: "user", content: "hi" }];

async function failure(asked) {
  try {
    await asked();
  } catch (error) {
    return [error.status, error.code];
  }
  return null;
}

async function batched() {
  const body = { model, messages };
  const line = { custom_id: "a", method: "POST", url: "/v1/chat/completions", body };
  const input = await toFile(Buffer.from(JSON.stringify(line)), "in.jsonl");
  const file = await client.files.create({ file: input, purpose: "batch" });
  let batch = await client.batches.create({
    input_file_id: file.id, endpoint: line.url, completion_window: "24h",
  });
  for (let tries = 0; batch.status !== "completed" && tries < 200; tries += 1) {
    await new Promise((resolve) => setTimeout(resolve, 200));
    batch = await client.batches.retrieve(batch.id);
  }
  const output = await (await client.files.content(batch.output_file_id)).text();
  return JSON.parse(output).response.body.choices[0].message.content;
}

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
const gathered = await client.chat.completions.stream({ model, messages }).finalContent();
const response = await client.responses.create({ model, input: "hi" });
let responded = "";
for await (const event of await client.responses.create({ model, input: "hi", stream: true })) {
  responded += event.type === "response.output_text.delta" ? event.delta : "";
}
// Where nothing is said, this client asks for base64 and reads it.
const embedding = await client.embeddings.create({
  model: embedder, input: "a", service_tier: "priority",
});
console.log(JSON.stringify({
  answer: answer.choices[0].message.content, streamed, chunks, usage, gathered,
  embedding: embedding.data[0].embedding,
  batched: await batched(),
  unknown: await failure(() => client.chat.completions.create({ model: "none", messages })),
  responses: [response.output_text, responded],
  kept: await failure(() => client.responses.create({ model, input: "hi", background: true })),
}));
