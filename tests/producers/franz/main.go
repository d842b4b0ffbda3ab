// A producer, and a reader, on franz-go; it is spoken to as dialogue.py says.
package main

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"log"
	"os"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

const requestBytesMax = 8_000_000

// Nothing more comes where nothing has come for so long.
const moreMax = time.Second

type header struct {
	name  string
	value []byte
}

func (h *header) UnmarshalJSON(text []byte) error {
	return json.Unmarshal(text, &[]any{&h.name, &h.value})
}

// Bytes in base64, as encoding/json has them; those of null are nil.
type record struct {
	Partition   int32    `json:"partition"`
	Key         []byte   `json:"key"`
	Value       []byte   `json:"value"`
	Headers     []header `json:"headers"`
	TimestampMs *int64   `json:"timestamp_ms"`
}

type batch struct {
	Read                 string   `json:"read"`
	Partitions           int32    `json:"partitions"`
	Count                int      `json:"count"`
	Codec                string   `json:"codec"`
	Mode                 string   `json:"mode"`
	Topic                string   `json:"topic"`
	TransactionalID      *string  `json:"transactional_id"`
	TransactionTimeoutMs int64    `json:"transaction_timeout_ms"`
	Records              []record `json:"records"`
}

var codecs = map[string]kgo.CompressionCodec{
	"none":   kgo.NoCompression(),
	"gzip":   kgo.GzipCompression(),
	"snappy": kgo.SnappyCompression(),
	"lz4":    kgo.Lz4Compression(),
	"zstd":   kgo.ZstdCompression(),
}

func main() {
	lines := json.NewDecoder(bufio.NewReader(os.Stdin))
	answers := json.NewEncoder(os.Stdout)
	for lines.More() {
		var next batch
		if err := lines.Decode(&next); err != nil {
			log.Fatal(err)
		}
		var answer []any
		if next.Read != "" {
			answer = read(os.Args[1], next)
		} else {
			answer = publish(os.Args[1], next)
		}
		if err := answers.Encode(answer); err != nil {
			log.Fatal(err)
		}
	}
}

func publish(servers string, b batch) []any {
	ctx := context.Background()
	client, err := kgo.NewClient(options(servers, b)...)
	check(err)
	if b.TransactionalID != nil {
		check(client.BeginTransaction())
	}
	outcomes := make([]any, len(b.Records))
	for i, r := range b.Records {
		client.Produce(ctx, made(b.Topic, r), func(sent *kgo.Record, err error) {
			if err != nil {
				outcomes[i] = err.Error()
			} else {
				outcomes[i] = sent.Offset
			}
		})
	}
	check(client.Flush(ctx))
	switch b.Mode {
	case "committed":
		check(client.EndTransaction(ctx, kgo.TryCommit))
	case "aborted":
		check(client.EndTransaction(ctx, kgo.TryAbort))
	}
	if b.Mode != "left open" {
		client.Close()
	}
	return outcomes
}

func options(servers string, b batch) []kgo.Opt {
	chosen := []kgo.Opt{
		kgo.SeedBrokers(servers),
		kgo.RecordPartitioner(kgo.ManualPartitioner()),
		kgo.ProducerBatchCompression(codecs[b.Codec]),
		kgo.ProducerBatchMaxBytes(requestBytesMax),
		kgo.ProducerLinger(500 * time.Millisecond),
	}
	if b.Mode == "plain" {
		chosen = append(chosen, kgo.DisableIdempotentWrite())
	}
	if b.TransactionalID != nil {
		timeout := time.Duration(b.TransactionTimeoutMs) * time.Millisecond
		chosen = append(
			chosen, kgo.TransactionalID(*b.TransactionalID), kgo.TransactionTimeout(timeout))
	}
	return chosen
}

func made(topic string, r record) *kgo.Record {
	sent := &kgo.Record{Topic: topic, Partition: r.Partition, Key: r.Key, Value: r.Value}
	for _, h := range r.Headers {
		sent.Headers = append(sent.Headers, kgo.RecordHeader{Key: h.name, Value: h.value})
	}
	if r.TimestampMs != nil {
		sent.Timestamp = time.UnixMilli(*r.TimestampMs)
	}
	return sent
}

func read(servers string, b batch) []any {
	partitions := map[int32]kgo.Offset{}
	for number := range b.Partitions {
		partitions[number] = kgo.NewOffset().AtStart()
	}
	client, err := kgo.NewClient(
		kgo.SeedBrokers(servers),
		kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{b.Read: partitions}),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
	)
	check(err)
	defer client.Close()
	var found []any
	for more := true; more || len(found) < b.Count; {
		ctx, cancel := context.WithTimeout(context.Background(), moreMax)
		polled := client.PollFetches(ctx).Records()
		cancel()
		for _, r := range polled {
			headers := [][]any{}
			for _, h := range r.Headers {
				headers = append(headers, []any{h.Key, h.Value})
			}
			found = append(found, []any{r.Partition, r.Offset, r.Key, digest(r.Value), headers})
		}
		more = len(polled) > 0
	}
	return found
}

func digest(value []byte) any {
	if value == nil {
		return nil
	}
	sum := sha256.Sum256(value)
	return hex.EncodeToString(sum[:])
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
