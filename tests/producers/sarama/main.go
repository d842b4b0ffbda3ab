// A producer, and a reader, on Sarama; it is spoken to as dialogue.py says.
package main

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"log"
	"os"
	"strings"
	"time"

	"github.com/IBM/sarama"
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

var codecs = map[string]sarama.CompressionCodec{
	"none":   sarama.CompressionNone,
	"gzip":   sarama.CompressionGZIP,
	"snappy": sarama.CompressionSnappy,
	"lz4":    sarama.CompressionLZ4,
	"zstd":   sarama.CompressionZSTD,
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
	producer, err := sarama.NewAsyncProducer(strings.Split(servers, ","), config(b))
	check(err)
	if b.TransactionalID != nil {
		check(producer.BeginTxn())
	}
	go func() {
		for i, r := range b.Records {
			sent := made(b.Topic, r)
			sent.Metadata = i
			producer.Input() <- sent
		}
	}()
	outcomes := make([]any, len(b.Records))
	for range b.Records {
		select {
		case sent := <-producer.Successes():
			outcomes[sent.Metadata.(int)] = sent.Offset
		case failed := <-producer.Errors():
			outcomes[failed.Msg.Metadata.(int)] = failed.Err.Error()
		}
	}
	switch b.Mode {
	case "committed":
		check(producer.CommitTxn())
	case "aborted":
		check(producer.AbortTxn())
	}
	if b.Mode != "left open" {
		check(producer.Close())
	}
	return outcomes
}

func config(b batch) *sarama.Config {
	chosen := sarama.NewConfig()
	chosen.Producer.RequiredAcks = sarama.WaitForAll
	chosen.Producer.Partitioner = sarama.NewManualPartitioner
	chosen.Producer.Compression = codecs[b.Codec]
	chosen.Producer.MaxMessageBytes = requestBytesMax
	// Those of a batch together, in one produce batch of each partition.
	chosen.Producer.Flush.Messages = len(b.Records)
	chosen.Producer.Flush.Frequency = 500 * time.Millisecond
	chosen.Producer.Return.Successes = true
	if b.Mode != "plain" {
		chosen.Producer.Idempotent = true
		chosen.Net.MaxOpenRequests = 1
	}
	if b.TransactionalID != nil {
		chosen.Producer.Transaction.ID = *b.TransactionalID
		chosen.Producer.Transaction.Timeout =
			time.Duration(b.TransactionTimeoutMs) * time.Millisecond
	}
	return chosen
}

func made(topic string, r record) *sarama.ProducerMessage {
	sent := &sarama.ProducerMessage{Topic: topic, Partition: r.Partition}
	if r.Key != nil {
		sent.Key = sarama.ByteEncoder(r.Key)
	}
	if r.Value != nil {
		sent.Value = sarama.ByteEncoder(r.Value)
	}
	for _, h := range r.Headers {
		sent.Headers = append(
			sent.Headers, sarama.RecordHeader{Key: []byte(h.name), Value: h.value})
	}
	if r.TimestampMs != nil {
		sent.Timestamp = time.UnixMilli(*r.TimestampMs)
	}
	return sent
}

func read(servers string, b batch) []any {
	chosen := sarama.NewConfig()
	chosen.Consumer.IsolationLevel = sarama.ReadCommitted
	consumer, err := sarama.NewConsumer(strings.Split(servers, ","), chosen)
	check(err)
	defer consumer.Close()
	records := make(chan *sarama.ConsumerMessage)
	for number := range b.Partitions {
		partition, err := consumer.ConsumePartition(b.Read, number, sarama.OffsetOldest)
		check(err)
		defer partition.AsyncClose()
		go func() {
			for r := range partition.Messages() {
				records <- r
			}
		}()
	}
	var found []any
	for more := true; more || len(found) < b.Count; {
		select {
		case r := <-records:
			headers := [][]any{}
			for _, h := range r.Headers {
				headers = append(headers, []any{string(h.Key), h.Value})
			}
			found = append(found, []any{r.Partition, r.Offset, r.Key, digest(r.Value), headers})
			more = true
		case <-time.After(moreMax):
			more = false
		}
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
