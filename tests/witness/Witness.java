// The second witness: reads a status topic whole, read committed, and judges every history of it.
//
// It shares no code with streamtask: its own client (Apache Kafka's), its own JSON, its own table of the states. It knows
// what docs/guarantees.md and docs/wire.md promise to any reader, and nothing of the requests, dead letters and offsets.
//
//   java -cp <kafka-clients and what it needs> Witness.java BOOTSTRAP_SERVERS TOPIC [TIMEOUT_S]
//
// One JSON document on stdout (docs/audit.md names its fields), exit code 0 whatever it found; 2 when it could not read.
// Memory: about 200 bytes a history.

import java.nio.charset.CharacterCodingException;
import java.nio.charset.CodingErrorAction;
import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.time.DateTimeException;
import java.time.Duration;
import java.time.OffsetDateTime;
import java.util.ArrayList;
import java.util.Collection;
import java.util.Comparator;
import java.util.HashMap;
import java.util.HashSet;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import java.util.Set;
import java.util.TreeMap;
import java.util.concurrent.TimeUnit;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import org.apache.kafka.clients.admin.Admin;
import org.apache.kafka.clients.admin.ListOffsetsResult.ListOffsetsResultInfo;
import org.apache.kafka.clients.admin.OffsetSpec;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.common.PartitionInfo;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;

public final class Witness {
    static final int LISTED_MAX = 1_000; // violations named; all are counted
    static final long REFRESH_MS = 86_400_000; // CREATED again so much later: published anew for a task that waits
    static final Pattern ORIGIN = Pattern.compile("([A-Za-z0-9_.]+)-(\\d{1,10})@(\\d{1,19})");
    static final Pattern UUID = Pattern.compile("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}");

    enum Status {
        CREATED, RUNNING, COMPLETED, FAILED, CANCELLED;

        boolean terminal() {
            return this == COMPLETED || this == FAILED || this == CANCELLED;
        }

        boolean mayBecome(Status next) {
            switch (this) {
                case CREATED:
                    return next == RUNNING || next == CANCELLED;
                case RUNNING:
                    return next != CREATED;
                default:
                    return false;
            }
        }

        static Status of(Object word) {
            for (Status status : values()) {
                if (status.name().toLowerCase().equals(word)) {
                    return status;
                }
            }
            return null;
        }

        String word() {
            return name().toLowerCase();
        }
    }

    /** What one status event says; null where it says nothing. */
    record Event(String taskId, Status status, String origin, int originPartition, Long attempt, Long updated, Long created) {
        static Event read(byte[] value) throws Unreadable {
            if (!(Json.parse(value) instanceof Map<?, ?> document)) {
                throw new Unreadable("no JSON object");
            }
            if (!(document.get("task_id") instanceof String spelled) || !UUID.matcher(spelled.toLowerCase()).matches()) {
                throw new Unreadable("task_id is no UUID");
            }
            Status status = Status.of(document.get("status"));
            if (status == null) {
                throw new Unreadable("status is none of the five");
            }
            String origin = document.get("origin") instanceof String text ? text : "";
            Matcher parts = ORIGIN.matcher(origin);
            int partition = parts.matches() ? (int) Math.min(Long.parseLong(parts.group(2)), Integer.MAX_VALUE) : -1;
            Long attempt = document.get("attempt") instanceof Number number ? (Long) number.longValue() : null;
            return new Event(spelled.toLowerCase(), status, origin, partition, attempt,
                    millis(document.get("updated_at")), millis(document.get("created_at")));
        }

        static Long millis(Object text) throws Unreadable {
            if (text == null) {
                return null;
            }
            try {
                return OffsetDateTime.parse((String) text).toInstant().toEpochMilli();
            } catch (DateTimeException | ClassCastException wrong) {
                throw new Unreadable("no time: " + text);
            }
        }
    }

    /** What the events of one request record have said so far. */
    static final class History {
        final String taskId;
        final int partition;
        final long first;
        final boolean begun;
        Status status;
        long timestamp;
        Long attempt;
        Long updated;
        final Long created;

        History(Event event, ConsumerRecord<byte[], byte[]> record) {
            taskId = event.taskId();
            partition = record.partition();
            first = record.offset();
            begun = event.status() == Status.CREATED;
            status = event.status();
            timestamp = record.timestamp();
            attempt = event.attempt();
            updated = event.updated();
            created = event.created();
        }
    }

    record Violation(String kind, String what, String taskId, String origin, int partition, long offset) {
    }

    private final String topic;
    private final Map<Integer, Long> starts = new TreeMap<>();
    private final Map<Integer, Long> ends = new TreeMap<>();
    private final Map<String, History> histories = new HashMap<>();
    private final Map<Integer, Long> uncleaned = new HashMap<>(); // partition → from here on nothing was compacted away
    private final Set<String> unseen = new HashSet<>(); // keys of records in a format that is not read here
    private final Map<Status, Long> events = new TreeMap<>();
    private final List<Violation> violations = new ArrayList<>();
    private final Set<String> tasks = new HashSet<>();
    private final List<String> unread = new ArrayList<>();
    private long records;
    private long skipped;
    private long refreshed;
    private long truncated;

    Witness(String topic) {
        this.topic = topic;
    }

    // --- Reading ---------------------------------------------------------------------------------------------------

    void read(String bootstrap, long timeoutMs) throws Exception {
        long deadline = System.nanoTime() + TimeUnit.MILLISECONDS.toNanos(timeoutMs);
        Properties properties = new Properties();
        properties.put("bootstrap.servers", bootstrap);
        properties.put("isolation.level", "read_committed");
        properties.put("auto.offset.reset", "earliest");
        properties.put("enable.auto.commit", "false");
        properties.put("max.poll.records", "5000");
        properties.put("client.id", "witness");
        ByteArrayDeserializer bytes = new ByteArrayDeserializer();
        try (KafkaConsumer<byte[], byte[]> consumer = new KafkaConsumer<>(properties, bytes, bytes)) {
            List<TopicPartition> places = new ArrayList<>();
            List<PartitionInfo> known = consumer.partitionsFor(topic, Duration.ofMillis(timeoutMs));
            if (known == null || known.isEmpty()) {
                throw new IllegalStateException("there is no topic " + topic);
            }
            known.forEach(info -> places.add(new TopicPartition(topic, info.partition())));
            bounds(bootstrap, places, timeoutMs);
            consumer.assign(places);
            consumer.seekToBeginning(places);
            while (!caughtUp(consumer, places) && System.nanoTime() < deadline) {
                for (ConsumerRecord<byte[], byte[]> record : consumer.poll(Duration.ofMillis(200))) {
                    if (record.offset() < ends.get(record.partition())) {
                        take(record);
                    }
                }
            }
            for (TopicPartition place : places) {
                long position = consumer.position(place);
                if (position < ends.get(place.partition())) {
                    unread.add(place + " was read to " + position + " of " + ends.get(place.partition()));
                }
            }
        }
    }

    /** Where the logs begin and end now. The end is the high watermark: an open transaction is waited for. */
    private void bounds(String bootstrap, List<TopicPartition> places, long timeoutMs) throws Exception {
        try (Admin admin = Admin.create(Map.of("bootstrap.servers", bootstrap, "client.id", "witness"))) {
            Map<TopicPartition, OffsetSpec> asked = new HashMap<>();
            places.forEach(place -> asked.put(place, OffsetSpec.latest()));
            Map<TopicPartition, ListOffsetsResultInfo> told =
                    admin.listOffsets(asked).all().get(timeoutMs, TimeUnit.MILLISECONDS);
            told.forEach((place, info) -> ends.put(place.partition(), info.offset()));
            places.forEach(place -> asked.put(place, OffsetSpec.earliest()));
            told = admin.listOffsets(asked).all().get(timeoutMs, TimeUnit.MILLISECONDS);
            told.forEach((place, info) -> starts.put(place.partition(), info.offset()));
        }
    }

    private boolean caughtUp(KafkaConsumer<byte[], byte[]> consumer, Collection<TopicPartition> places) {
        for (TopicPartition place : places) {
            if (consumer.position(place) < ends.get(place.partition())) {
                return false;
            }
        }
        return true;
    }

    // --- Judging ---------------------------------------------------------------------------------------------------

    private void take(ConsumerRecord<byte[], byte[]> record) {
        records++;
        byte[] value = record.value();
        String key = record.key() == null ? "" : new String(record.key(), StandardCharsets.UTF_8);
        if (value != null && value.length > 0 && (value[0] == 0 || value[0] == (byte) 0xC3)) {
            skipped++; // Avro, with or without a registry
            unseen.add(key);
            return;
        }
        Event event;
        try {
            event = Event.read(value == null ? new byte[0] : value);
        } catch (Unreadable unreadable) {
            violations.add(new Violation("unreadable_event", unreadable.getMessage(), key, "", record.partition(), record.offset()));
            return;
        }
        events.merge(event.status(), 1L, Long::sum);
        tasks.add(event.taskId());
        if (!key.equals(event.taskId())) {
            breach("wrong_key", "the key is " + key, event, record);
        }
        if (event.originPartition() < 0) {
            breach("unknown_origin", "the origin is \"" + event.origin() + "\"", event, record);
            return;
        }
        if (event.originPartition() != record.partition()) {
            breach("wrong_partition", "its request lies in partition " + event.originPartition(), event, record);
            return; // no part of its history: between two partitions there is no order
        }
        History history = histories.get(event.origin());
        if (history == null) {
            histories.put(event.origin(), new History(event, record));
        } else {
            step(history, event, record);
        }
    }

    private void step(History history, Event event, ConsumerRecord<byte[], byte[]> record) {
        // The cleaner works from the front and leaves one record of a key: where two are, it has not come to the second.
        if (event.taskId().equals(history.taskId)) {
            uncleaned.merge(record.partition(), record.offset(), Math::min);
        }
        Status before = history.status;
        Status now = event.status();
        String step = now.word() + " after " + before.word();
        if (before.terminal()) {
            String kind = now.terminal() ? "two_ends" : now == Status.CREATED ? "two_created" : "event_after_end";
            breach(kind, step, event, record);
            return; // the first end stays
        }
        if (!event.taskId().equals(history.taskId)) {
            breach("wrong_task_id", "its history is that of " + history.taskId, event, record);
        }
        if (event.attempt() != null && history.attempt != null && event.attempt() < history.attempt) {
            breach("attempt_back", "attempt " + event.attempt() + " after " + history.attempt, event, record);
        }
        if (event.updated() != null && history.updated != null && event.updated() < history.updated) {
            breach("time_back", "updated_at fell by " + (history.updated - event.updated()) + " ms", event, record);
        }
        if (event.created() != null && history.created != null && !event.created().equals(history.created)) {
            breach("created_at_changed", "created_at moved by " + (event.created() - history.created) + " ms", event, record);
        }
        if (now == Status.CREATED) {
            if (before == Status.CREATED && record.timestamp() - history.timestamp >= REFRESH_MS) {
                refreshed++;
            } else {
                breach("two_created", step, event, record);
            }
        } else if (!before.mayBecome(now)) {
            breach("off_machine", step, event, record);
        }
        history.status = now;
        history.timestamp = record.timestamp();
        if (event.attempt() != null) {
            history.attempt = event.attempt();
        }
        if (event.updated() != null) {
            history.updated = event.updated();
        }
    }

    private void breach(String kind, String what, Event event, ConsumerRecord<byte[], byte[]> record) {
        violations.add(new Violation(kind, what, event.taskId(), event.origin(), record.partition(), record.offset()));
    }

    /** What only the whole can show: which beginnings are missing although nothing can have removed them. */
    private void conclude() {
        for (Map.Entry<String, History> entry : histories.entrySet()) {
            History history = entry.getValue();
            if (history.begun) {
                continue;
            }
            boolean retention = starts.get(history.partition) > 0;
            if (retention || history.first < uncleaned.getOrDefault(history.partition, history.first + 1)) {
                truncated++;
            } else {
                violations.add(new Violation("created_missing", "begins with " + history.status.word(), history.taskId,
                        entry.getKey(), history.partition, history.first));
            }
        }
        // Of a task whose other events are in a format that is not read here nothing is known.
        violations.removeIf(violation -> unseen.contains(violation.taskId()));
        violations.sort(Comparator.comparingInt(Violation::partition).thenComparingLong(Violation::offset)
                .thenComparing(Violation::kind));
    }

    // --- Telling ---------------------------------------------------------------------------------------------------

    Map<String, Object> document() {
        if (unread.isEmpty()) {
            conclude();
        }
        Map<String, Long> counts = new TreeMap<>();
        histories.values().forEach(history -> counts.merge(history.status.word(), 1L, Long::sum));
        Map<String, Long> said = new TreeMap<>();
        events.forEach((status, count) -> said.put(status.word(), count));
        Map<String, Long> kinds = new TreeMap<>();
        violations.forEach(violation -> kinds.merge(violation.kind(), 1L, Long::sum));
        List<Object> listed = new ArrayList<>();
        for (Violation violation : violations.subList(0, Math.min(violations.size(), LISTED_MAX))) {
            Map<String, Object> one = new LinkedHashMap<>();
            one.put("kind", violation.kind());
            one.put("what", violation.what());
            one.put("task_id", violation.taskId());
            one.put("origin", violation.origin());
            one.put("partition", violation.partition());
            one.put("offset", violation.offset());
            listed.add(one);
        }
        Map<String, Object> document = new LinkedHashMap<>();
        document.put("topic", topic);
        document.put("records", records);
        document.put("skipped", skipped);
        document.put("events_by_status", said);
        document.put("tasks", tasks.size());
        document.put("histories", histories.size());
        document.put("counts", counts);
        document.put("terminals", histories.values().stream().filter(history -> history.status.terminal()).count());
        document.put("refreshed", refreshed);
        document.put("truncated", truncated);
        document.put("violations", violations.size());
        document.put("violations_by_kind", kinds);
        document.put("violation_list", listed);
        document.put("ends", ends);
        document.put("unread", unread);
        return document;
    }

    public static void main(String[] args) {
        if (args.length < 2) {
            System.err.println("Witness.java BOOTSTRAP_SERVERS TOPIC [TIMEOUT_S]");
            System.exit(2);
        }
        try {
            Witness witness = new Witness(args[1]);
            witness.read(args[0], 1_000L * (args.length > 2 ? Long.parseLong(args[2]) : 120L));
            System.out.println(Json.write(witness.document()));
        } catch (Exception error) {
            System.err.println("Witness: " + error);
            System.exit(2);
        }
    }

    /** What a record is not: a status event. */
    static final class Unreadable extends Exception {
        private static final long serialVersionUID = 1L;

        Unreadable(String what) {
            super(what);
        }
    }

    /** JSON, as RFC 8259 has it: objects as maps, arrays as lists, whole numbers as Long where they fit. */
    static final class Json {
        static final int DEPTH_MAX = 1_000;
        private final String text;
        private int at;
        private int depth;

        private Json(String text) {
            this.text = text;
        }

        static Object parse(byte[] bytes) throws Unreadable {
            String text;
            try {
                text = StandardCharsets.UTF_8.newDecoder().onMalformedInput(CodingErrorAction.REPORT)
                        .decode(ByteBuffer.wrap(bytes)).toString();
            } catch (CharacterCodingException wrong) {
                throw new Unreadable("not UTF-8");
            }
            Json json = new Json(text);
            Object value = json.value();
            json.blank();
            if (json.at != text.length()) {
                throw json.wrong("more after the value");
            }
            return value;
        }

        private Unreadable wrong(String what) {
            return new Unreadable("not JSON: " + what + " at character " + at);
        }

        private void blank() {
            while (at < text.length() && " \t\r\n".indexOf(text.charAt(at)) >= 0) {
                at++;
            }
        }

        private char next() throws Unreadable {
            if (at >= text.length()) {
                throw wrong("it ends");
            }
            return text.charAt(at++);
        }

        private void expect(String word) throws Unreadable {
            if (!text.startsWith(word, at)) {
                throw wrong("no " + word);
            }
            at += word.length();
        }

        private Object value() throws Unreadable {
            blank();
            if (at >= text.length()) {
                throw wrong("it ends");
            }
            switch (text.charAt(at)) {
                case '{':
                    return object();
                case '[':
                    return array();
                case '"':
                    return string();
                case 't':
                    expect("true");
                    return true;
                case 'f':
                    expect("false");
                    return false;
                case 'n':
                    expect("null");
                    return null;
                default:
                    return number();
            }
        }

        private Map<String, Object> object() throws Unreadable {
            Map<String, Object> found = new HashMap<>();
            for (boolean more = opened("{", '}'); more; more = another('}')) {
                blank();
                String name = string();
                blank();
                expect(":");
                found.put(name, value());
            }
            return found;
        }

        private List<Object> array() throws Unreadable {
            List<Object> found = new ArrayList<>();
            for (boolean more = opened("[", ']'); more; more = another(']')) {
                found.add(value());
            }
            return found;
        }

        /** After the opening bracket: whether a member follows. */
        private boolean opened(String bracket, char closing) throws Unreadable {
            expect(bracket);
            if (++depth > DEPTH_MAX) {
                throw wrong("nested too deeply");
            }
            blank();
            if (at < text.length() && text.charAt(at) == closing) {
                at++;
                depth--;
                return false;
            }
            return true;
        }

        /** After a member: whether another one must follow. */
        private boolean another(char closing) throws Unreadable {
            blank();
            char found = next();
            if (found == closing) {
                depth--;
            } else if (found != ',') {
                throw wrong("neither , nor " + closing);
            }
            return found == ',';
        }

        private String string() throws Unreadable {
            expect("\"");
            StringBuilder out = new StringBuilder();
            for (char c = next(); c != '"'; c = next()) {
                if (c < 0x20) {
                    throw wrong("a control character");
                }
                out.append(c == '\\' ? escaped() : c);
            }
            return out.toString();
        }

        private char escaped() throws Unreadable {
            char c = next();
            int plain = "\"\\/bfnrt".indexOf(c);
            if (plain >= 0) {
                return "\"\\/\b\f\n\r\t".charAt(plain);
            }
            if (c != 'u' || at + 4 > text.length()) {
                throw wrong("an unknown escape");
            }
            try {
                char spelled = (char) Integer.parseInt(text.substring(at, at + 4), 16);
                at += 4;
                return spelled;
            } catch (NumberFormatException notHex) {
                throw wrong("an unknown escape");
            }
        }

        private static final Pattern NUMBER = Pattern.compile("-?(0|[1-9]\\d*)(\\.\\d+)?([eE][+-]?\\d+)?");

        private Number number() throws Unreadable {
            Matcher found = NUMBER.matcher(text).region(at, text.length());
            if (!found.lookingAt()) {
                throw wrong("no value");
            }
            at = found.end();
            if (found.group(2) == null && found.group(3) == null && found.group().length() < 19) {
                return Long.parseLong(found.group());
            }
            return Double.parseDouble(found.group());
        }

        static String write(Object value) {
            if (value instanceof Map<?, ?> map) {
                List<String> members = new ArrayList<>();
                map.forEach((name, held) -> members.add(write(String.valueOf(name)) + ": " + write(held)));
                return "{" + String.join(", ", members) + "}";
            }
            if (value instanceof List<?> list) {
                return "[" + String.join(", ", list.stream().map(Json::write).toList()) + "]";
            }
            return value instanceof String text ? quoted(text) : String.valueOf(value);
        }

        private static String quoted(String text) {
            StringBuilder out = new StringBuilder("\"");
            for (char c : text.toCharArray()) {
                if (c == '"' || c == '\\') {
                    out.append('\\').append(c);
                } else if (c < 0x20 || c > 0x7e) {
                    out.append(String.format("\\u%04x", (int) c));
                } else {
                    out.append(c);
                }
            }
            return out.append('"').toString();
        }
    }
}
