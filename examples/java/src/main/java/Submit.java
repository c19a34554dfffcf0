import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import java.io.IOException;
import java.io.InputStream;
import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.security.MessageDigest;
import java.security.SecureRandom;
import java.time.Duration;
import java.util.ArrayList;
import java.util.HashSet;
import java.util.HexFormat;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.UUID;
import org.apache.avro.Schema;
import org.apache.avro.generic.GenericData;
import org.apache.avro.generic.GenericRecord;
import org.apache.avro.generic.GenericRecordBuilder;
import org.apache.avro.message.BinaryMessageDecoder;
import org.apache.avro.message.BinaryMessageEncoder;
import org.apache.kafka.clients.admin.Admin;
import org.apache.kafka.clients.consumer.ConsumerConfig;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerConfig;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.clients.producer.RecordMetadata;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;
import org.apache.kafka.common.serialization.ByteArraySerializer;
import org.apache.kafka.common.serialization.StringDeserializer;
import org.apache.kafka.common.serialization.StringSerializer;

/**
 * Four requests by kafka-clients, one of them in Avro, and their status events until each task has ended.
 *
 * <pre>STREAMTASK_BOOTSTRAP_SERVERS=127.0.0.1:9092 java -cp 'target/classes:target/lib/*' Submit [STEPS [ORDERING_KEY]]</pre>
 */
public final class Submit {
    private static final Duration WAIT = Duration.ofSeconds(60); // for all of them
    private static final ObjectMapper JSON = new ObjectMapper();

    private final KafkaProducer<String, byte[]> producer;
    private final String clusterId;
    private final String topic;
    private final String traceparent = "00-" + random(16) + "-" + random(8) + "-01";
    private final Set<String> open = new HashSet<>(); // ids of tasks that have not ended

    private Submit(KafkaProducer<String, byte[]> producer, String clusterId, String topic) {
        this.producer = producer;
        this.clusterId = clusterId;
        this.topic = topic;
    }

    public static void main(String[] arguments) throws Exception {
        System.setProperty("org.slf4j.simpleLogger.defaultLogLevel", "warn");
        String servers = environment("STREAMTASK_BOOTSTRAP_SERVERS", "127.0.0.1:9092");
        String prefix = environment("STREAMTASK_PREFIX", "tasks");
        int steps = arguments.length > 0 ? Integer.parseInt(arguments[0]) : 2;
        String key = arguments.length > 1 ? arguments[1] : "customer-42";
        // kafka-clients is the reference: acks=all, idempotence and murmur2 of the key are its defaults.
        Map<String, Object> producing = Map.of(ProducerConfig.BOOTSTRAP_SERVERS_CONFIG, servers);
        Map<String, Object> reading = Map.of(
                ConsumerConfig.BOOTSTRAP_SERVERS_CONFIG, servers,
                // Events of an aborted transaction never happened. The default shows them.
                ConsumerConfig.ISOLATION_LEVEL_CONFIG, "read_committed");
        boolean completed;
        try (var producer = new KafkaProducer<>(producing, new StringSerializer(), new ByteArraySerializer());
                var consumer = new KafkaConsumer<>(reading, new StringDeserializer(), new ByteArrayDeserializer());
                var admin = Admin.create(producing)) {
            List<TopicPartition> partitions = new ArrayList<>();
            for (var one : consumer.partitionsFor(prefix + ".status")) {
                partitions.add(new TopicPartition(one.topic(), one.partition()));
            }
            if (partitions.isEmpty()) {
                throw new IllegalStateException(prefix + ".status does not exist. Make it: streamtask topics create");
            }
            consumer.assign(partitions);
            consumer.seekToEnd(partitions);
            partitions.forEach(consumer::position); // now: seekToEnd alone would look after the requests are sent
            String clusterId = admin.describeCluster().clusterId().get();
            var submit = new Submit(producer, clusterId, prefix + ".requests.normal");
            submit.sendAll(steps, key);
            completed = submit.follow(consumer);
        }
        System.exit(completed ? 0 : 1);
    }

    private void sendAll(int steps, String key) throws Exception {
        System.out.println("trace " + traceparent);
        Map<String, Object> parameters = Map.of("steps", steps);
        String id = UUID.randomUUID().toString();
        send("by-id", id, id,
                JSON.writeValueAsBytes(Map.of("task_type", "countdown", "task_id", id, "parameters", parameters)));
        id = UUID.randomUUID().toString();
        send("in-order", id, key, JSON.writeValueAsBytes(Map.of(
                "task_type", "countdown", "task_id", id, "ordering_key", key, "parameters", parameters)));
        send("bare", null, null,
                JSON.writeValueAsBytes(Map.of("task_type", "countdown", "parameters", parameters)));
        id = UUID.randomUUID().toString();
        send("avro", id, id, avro(id, parameters));
    }

    /** The same request in Avro's single-object encoding. */
    private static byte[] avro(String id, Map<String, Object> parameters) throws IOException {
        Schema schema = schema("task_request.avsc");
        GenericRecord request = new GenericRecordBuilder(schema)
                .set("task_type", "countdown")
                .set("task_id", id)
                .set("parameters", JSON.writeValueAsString(parameters)) // JSON text: its values have no schema
                .build();
        ByteBuffer encoded = new BinaryMessageEncoder<GenericRecord>(GenericData.get(), schema).encode(request);
        byte[] bytes = new byte[encoded.remaining()];
        encoded.get(bytes);
        return bytes;
    }

    private void send(String name, String id, String key, byte[] request) throws Exception {
        var record = new ProducerRecord<>(topic, key, request);
        record.headers().add("traceparent", traceparent.getBytes(StandardCharsets.US_ASCII));
        RecordMetadata told = producer.send(record).get();
        String place = told.partition() + "@" + told.offset();
        String taskId = id != null ? id : derivedId(told);
        open.add(taskId);
        System.out.println("sent " + name + " " + taskId + " " + topic.substring(topic.lastIndexOf('.') + 1) + "-" + place);
    }

    /** The id of a request that names none (docs/wire.md): UUIDv5 of where and when its record lies. */
    private String derivedId(RecordMetadata told) throws Exception {
        String place = clusterId + "/" + topic + "/" + told.partition() + "/" + told.offset() + "/" + told.timestamp();
        // UUID.nameUUIDFromBytes is version 3: another id.
        MessageDigest sha1 = MessageDigest.getInstance("SHA-1");
        sha1.update(HexFormat.of().parseHex("6f1d5c1e6d0e5b8a9a5173747265616d"));
        ByteBuffer hash = ByteBuffer.wrap(sha1.digest(place.getBytes(StandardCharsets.UTF_8)));
        long high = hash.getLong() & ~0xF000L | 0x5000L;
        long low = hash.getLong() & ~(3L << 62) | 2L << 62;
        return new UUID(high, low).toString();
    }

    /** Prints the events of the open tasks until none is open; whether all have completed. */
    private boolean follow(KafkaConsumer<String, byte[]> consumer) throws IOException {
        boolean completed = true;
        long deadline = System.nanoTime() + WAIT.toNanos();
        while (!open.isEmpty()) {
            if (System.nanoTime() > deadline) {
                System.err.println(open + " have not ended within " + WAIT.toSeconds() + " s. Does a worker run?");
                return false;
            }
            for (var record : consumer.poll(Duration.ofMillis(500))) {
                if (record.value() == null || !open.contains(record.key())) {
                    continue; // the key is the task_id, whatever the format of the value
                }
                Event event = Event.read(record.value());
                int percent = (int) ((event.progress() == null ? 0 : event.progress()) * 100);
                System.out.println(record.key() + " " + event.status() + " " + percent + "% " + event.text());
                switch (event.status()) {
                    case "completed" -> open.remove(record.key());
                    case "failed", "cancelled" -> {
                        open.remove(record.key());
                        completed = false;
                    }
                    default -> { }
                }
            }
        }
        return completed;
    }

    /** What is shown of a status event. */
    private record Event(String status, Double progress, String text) {
        private static final BinaryMessageDecoder<GenericRecord> AVRO = decoder();

        /** Workers write JSON, or Avro with format = "avro". */
        static Event read(byte[] value) throws IOException {
            if (value[0] == '{') {
                JsonNode json = JSON.readTree(value);
                return of(json.get("status").asText(), json.has("progress") ? json.get("progress").asDouble() : null,
                        json.path("result").toString(), json.path("error").asText(), json.path("message").asText());
            }
            GenericRecord avro = AVRO.decode(value);
            return of(avro.get("status").toString(), (Double) avro.get("progress"), String.valueOf(avro.get("result")),
                    text(avro, "error"), text(avro, "message"));
        }

        private static Event of(String status, Double progress, String result, String error, String message) {
            return new Event(status, progress, status.equals("completed") ? result : error.isEmpty() ? message : error);
        }

        private static String text(GenericRecord avro, String field) {
            return avro.get(field) == null ? "" : avro.get(field).toString();
        }

        private static BinaryMessageDecoder<GenericRecord> decoder() {
            try {
                return new BinaryMessageDecoder<>(GenericData.get(), schema("task_response.avsc"));
            } catch (IOException error) {
                throw new ExceptionInInitializerError(error);
            }
        }
    }

    private static Schema schema(String name) throws IOException {
        try (InputStream file = Submit.class.getResourceAsStream("/" + name)) {
            return new Schema.Parser().parse(file);
        }
    }

    private static String environment(String name, String otherwise) {
        String value = System.getenv(name);
        return value == null || value.isEmpty() ? otherwise : value;
    }

    private static String random(int size) {
        byte[] bytes = new byte[size];
        new SecureRandom().nextBytes(bytes);
        return HexFormat.of().formatHex(bytes);
    }
}
