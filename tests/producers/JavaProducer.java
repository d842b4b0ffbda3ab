import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.nio.charset.StandardCharsets;
import java.security.MessageDigest;
import java.security.NoSuchAlgorithmException;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Base64;
import java.util.HashMap;
import java.util.HexFormat;
import java.util.List;
import java.util.Map;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.Future;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.ConsumerRecords;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.clients.producer.RecordMetadata;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.header.Header;
import org.apache.kafka.common.header.internals.RecordHeader;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;
import org.apache.kafka.common.serialization.ByteArraySerializer;

/** A producer, and a reader, on Kafka's own client; it is spoken to as dialogue.py says. */
public final class JavaProducer {
    private static final MessageDigest SHA_256 = sha256();
    private static final ObjectMapper JSON = new ObjectMapper();
    private static final int REQUEST_BYTES_MAX = 8_000_000;
    /** Nothing more comes where nothing has come for so long. */
    private static final Duration MORE = Duration.ofSeconds(1);
    private static final List<KafkaProducer<byte[], byte[]>> LEFT_OPEN = new ArrayList<>();

    private JavaProducer() {}

    public static void main(String[] arguments) throws Exception {
        BufferedReader lines =
            new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        for (String line = lines.readLine(); line != null; line = lines.readLine()) {
            JsonNode told = JSON.readTree(line);
            List<?> answer = told.has("read")
                ? read(arguments[0], told)
                : publish(arguments[0], told);
            System.out.println(JSON.writeValueAsString(answer));
            System.out.flush();
        }
        Runtime.getRuntime().halt(0);
    }

    private static List<Object> publish(String servers, JsonNode batch) throws Exception {
        String mode = batch.get("mode").textValue();
        boolean transactional = !batch.get("transactional_id").isNull();
        Map<String, Object> options = new HashMap<>();
        options.put("bootstrap.servers", servers);
        options.put("compression.type", batch.get("codec").textValue());
        options.put("enable.idempotence", !mode.equals("plain"));
        options.put("max.request.size", REQUEST_BYTES_MAX);
        options.put("batch.size", REQUEST_BYTES_MAX);
        options.put("linger.ms", 500);
        if (transactional) {
            options.put("transactional.id", batch.get("transactional_id").textValue());
            options.put("transaction.timeout.ms", batch.get("transaction_timeout_ms").intValue());
        }
        KafkaProducer<byte[], byte[]> producer =
            new KafkaProducer<>(options, new ByteArraySerializer(), new ByteArraySerializer());
        if (transactional) {
            producer.initTransactions();
            producer.beginTransaction();
        }
        List<Object> sent = new ArrayList<>();
        for (JsonNode record : batch.get("records")) {
            sent.add(send(producer, batch.get("topic").textValue(), record));
        }
        producer.flush();
        List<Object> outcomes = new ArrayList<>();
        for (Object each : sent) {
            outcomes.add(each instanceof Future<?> future ? outcome(future) : each);
        }
        switch (mode) {
            case "committed" -> producer.commitTransaction();
            case "aborted" -> producer.abortTransaction();
            default -> { }
        }
        if (mode.equals("left open")) {
            LEFT_OPEN.add(producer);
        } else {
            producer.close();
        }
        return outcomes;
    }

    private static Object send(
        KafkaProducer<byte[], byte[]> producer, String topic, JsonNode record) throws Exception {
        List<Header> headers = new ArrayList<>();
        for (JsonNode header : record.get("headers")) {
            headers.add(new RecordHeader(header.get(0).textValue(), bytes(header.get(1))));
        }
        JsonNode timestamp = record.get("timestamp_ms");
        try {
            return producer.send(
                new ProducerRecord<>(
                    topic,
                    record.get("partition").intValue(),
                    timestamp.isNull() ? null : timestamp.longValue(),
                    bytes(record.get("key")),
                    bytes(record.get("value")),
                    headers));
        } catch (IllegalArgumentException error) {
            return error.toString();
        }
    }

    private static List<List<Object>> read(String servers, JsonNode told) {
        Map<String, Object> options = Map.of(
            "bootstrap.servers", servers,
            "isolation.level", "read_committed",
            "auto.offset.reset", "earliest");
        List<TopicPartition> partitions = new ArrayList<>();
        for (int number = 0; number < told.get("partitions").intValue(); number++) {
            partitions.add(new TopicPartition(told.get("read").textValue(), number));
        }
        List<List<Object>> found = new ArrayList<>();
        try (KafkaConsumer<byte[], byte[]> consumer = new KafkaConsumer<>(
                options, new ByteArrayDeserializer(), new ByteArrayDeserializer())) {
            consumer.assign(partitions);
            boolean more = true;
            while (more || found.size() < told.get("count").intValue()) {
                ConsumerRecords<byte[], byte[]> polled = consumer.poll(MORE);
                more = !polled.isEmpty();
                polled.forEach(each -> found.add(text(each)));
            }
        }
        return found;
    }

    private static List<Object> text(ConsumerRecord<byte[], byte[]> record) {
        List<List<String>> headers = new ArrayList<>();
        for (Header header : record.headers()) {
            headers.add(Arrays.asList(header.key(), text(header.value())));
        }
        return Arrays.asList(
            record.partition(), record.offset(), text(record.key()), digest(record.value()),
            headers);
    }

    private static Object outcome(Future<?> future) throws InterruptedException {
        try {
            return ((RecordMetadata) future.get()).offset();
        } catch (ExecutionException error) {
            return error.getCause().toString();
        }
    }

    private static MessageDigest sha256() {
        try {
            return MessageDigest.getInstance("SHA-256");
        } catch (NoSuchAlgorithmException error) {
            throw new IllegalStateException(error);
        }
    }

    private static String digest(byte[] bytes) {
        return bytes == null ? null : HexFormat.of().formatHex(SHA_256.digest(bytes));
    }

    private static String text(byte[] bytes) {
        return bytes == null ? null : Base64.getEncoder().encodeToString(bytes);
    }

    private static byte[] bytes(JsonNode text) {
        return text.isNull() ? null : Base64.getDecoder().decode(text.textValue());
    }
}
