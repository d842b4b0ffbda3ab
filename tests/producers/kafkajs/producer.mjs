// A producer, and a reader, on KafkaJS; it is spoken to as dialogue.py says.
import { createHash } from "node:crypto";
import { createInterface } from "node:readline";
import { compress, decompress, init } from "@bokuweb/zstd-wasm";
import kafkajs from "kafkajs";
import SnappyCodec from "kafkajs-snappy";
import lz4 from "lz4-napi";

const { CompressionCodecs, CompressionTypes, Kafka, logLevel } = kafkajs;
// Nothing more comes where nothing has come for so long.
const MORE_MS = 1000;
const CODECS = {
  none: CompressionTypes.None,
  gzip: CompressionTypes.GZIP,
  snappy: CompressionTypes.Snappy,
  lz4: CompressionTypes.LZ4,
  zstd: CompressionTypes.ZSTD,
};

await init();
CompressionCodecs[CompressionTypes.Snappy] = SnappyCodec;
CompressionCodecs[CompressionTypes.LZ4] = () => ({
  compress: (encoder) => lz4.compressFrame(encoder.buffer),
  decompress: (buffer) => lz4.decompressFrame(buffer),
});
CompressionCodecs[CompressionTypes.ZSTD] = () => ({
  compress: async (encoder) => Buffer.from(compress(encoder.buffer)),
  decompress: async (buffer) => Buffer.from(decompress(buffer)),
});

const kafka = new Kafka({ brokers: process.argv[2].split(","), logLevel: logLevel.ERROR });
const leftOpen = [];

async function publish(batch) {
  const producer = kafka.producer({
    createPartitioner: () => ({ message }) => message.partition,
    idempotent: batch.mode !== "plain",
    maxInFlightRequests: 1,
    retry: { retries: 2 },
    transactionalId: batch.transactional_id ?? undefined,
    transactionTimeout: batch.transaction_timeout_ms,
  });
  await producer.connect();
  const sender = batch.transactional_id === null ? producer : await producer.transaction();
  const outcomes = Array(batch.records.length).fill("not sent");
  const places = [...batch.records.keys()];
  // It throws where a header is null, and sends nothing of what stands beside it.
  const alone = places.filter((at) => batch.records[at].headers.some(([, value]) => value === null));
  await send(sender, batch, places.filter((at) => !alone.includes(at)), outcomes);
  for (const at of alone) await send(sender, batch, [at], outcomes);
  if (batch.mode === "committed") await sender.commit();
  else if (batch.mode === "aborted") await sender.abort();
  if (batch.mode === "left open") leftOpen.push(producer);
  else await producer.disconnect();
  return outcomes;
}

async function send(sender, batch, places, outcomes) {
  if (places.length === 0) return;
  const messages = places.map((at) => message(batch.records[at]));
  try {
    const sent = await sender.send({
      topic: batch.topic,
      messages,
      acks: -1,
      compression: CODECS[batch.codec],
    });
    const next = new Map(sent.map((each) => [each.partition, Number(each.baseOffset)]));
    for (const at of places) {
      const { partition } = batch.records[at];
      outcomes[at] = next.get(partition);
      next.set(partition, outcomes[at] + 1);
    }
  } catch (error) {
    for (const at of places) outcomes[at] = String(error);
  }
}

function message(record) {
  const headers = {};
  for (const [name, value] of record.headers) (headers[name] ??= []).push(bytes(value));
  return {
    partition: record.partition,
    key: bytes(record.key),
    value: bytes(record.value),
    headers,
    timestamp: record.timestamp_ms ?? undefined,
  };
}

async function read({ read: topic, count }) {
  const found = [];
  let more = true;
  const consumer = kafka.consumer({ groupId: `kafkajs-${process.pid}-${topic}` });
  await consumer.connect();
  await consumer.subscribe({ topics: [topic], fromBeginning: true });
  await consumer.run({
    autoCommit: false,
    eachMessage: async ({ partition, message: { offset, key, value, headers } }) => {
      const named = Object.entries(headers).flatMap(([name, values]) =>
        (Array.isArray(values) ? values : [values]).map((each) => [name, text(each)]));
      found.push([partition, Number(offset), text(key), digest(value), named]);
      more = true;
    },
  });
  while (more || found.length < count) {
    more = false;
    await new Promise((done) => setTimeout(done, MORE_MS));
  }
  await consumer.disconnect();
  return found;
}

function digest(buffer) {
  return buffer === null ? null : createHash("sha256").update(buffer).digest("hex");
}

function text(buffer) {
  return buffer?.toString("base64") ?? null;
}

function bytes(text) {
  return text === null ? null : Buffer.from(text, "base64");
}

for await (const line of createInterface({ input: process.stdin })) {
  // As text: a number would lose the end of what is long.
  const numbers = line.replace(/"timestamp_ms":(-?\d+)/g, '"timestamp_ms":"$1"');
  const told = JSON.parse(numbers);
  console.log(JSON.stringify(await ("read" in told ? read(told) : publish(told))));
}
process.exit(0);
