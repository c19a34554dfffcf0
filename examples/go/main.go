// Three requests by franz-go, and their status events until each task has ended.
//
//	STREAMTASK_BOOTSTRAP_SERVERS=127.0.0.1:9092 go run . [STEPS [ORDERING_KEY]]
package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

const wait = time.Minute // for all of them

// Request and Event have the fields that are used here; docs/wire.md has all.
type Request struct {
	TaskType    string         `json:"task_type"`
	TaskID      string         `json:"task_id,omitempty"`
	OrderingKey string         `json:"ordering_key,omitempty"`
	Parameters  map[string]any `json:"parameters"`
}

type Event struct {
	TaskID   string          `json:"task_id"`
	Status   string          `json:"status"`
	Progress float64         `json:"progress"`
	Message  string          `json:"message"`
	Error    string          `json:"error"`
	Result   json.RawMessage `json:"result"`
}

var derived = uuid.MustParse("6f1d5c1e-6d0e-5b8a-9a51-73747265616d")

func main() {
	ctx, cancel := context.WithTimeout(context.Background(), wait)
	defer cancel()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	brokers := strings.Split(cmp.Or(os.Getenv("STREAMTASK_BOOTSTRAP_SERVERS"), "127.0.0.1:9092"), ",")
	prefix := cmp.Or(os.Getenv("STREAMTASK_PREFIX"), "tasks")
	steps, err := strconv.Atoi(argument(1, "2"))
	if err != nil {
		return err
	}
	producer, err := kgo.NewClient(
		kgo.SeedBrokers(brokers...),
		// Where Java's client puts a key. It is the default, and it has to stay.
		kgo.RecordPartitioner(kgo.StickyKeyPartitioner(nil)),
	)
	if err != nil {
		return err
	}
	defer producer.Close()
	admin := kadm.NewClient(producer)
	cluster, err := admin.BrokerMetadata(ctx)
	if err != nil {
		return err
	}
	// Events of what is sent from here on lie behind.
	ends, err := admin.ListEndOffsets(ctx, prefix+".status")
	if err != nil {
		return err
	}
	if err := ends.Error(); err != nil {
		return err
	}
	open, err := sendAll(ctx, producer, cluster.Cluster, prefix+".requests.normal", steps, argument(2, "customer-42"))
	if err != nil {
		return err
	}
	consumer, err := kgo.NewClient(
		kgo.SeedBrokers(brokers...),
		kgo.ConsumePartitions(ends.KOffsets()),
		// Events of an aborted transaction never happened. The default shows them.
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
	)
	if err != nil {
		return err
	}
	defer consumer.Close()
	return follow(ctx, consumer, open)
}

func argument(at int, otherwise string) string {
	if len(os.Args) > at {
		return os.Args[at]
	}
	return otherwise
}

// sendAll returns the ids of the tasks.
func sendAll(ctx context.Context, client *kgo.Client, cluster, topic string, steps int, key string) (map[string]bool, error) {
	traceparent := fmt.Sprintf("00-%x-%x-01", random(16), random(8))
	fmt.Println("trace", traceparent)
	open := map[string]bool{}
	send := func(name, key string, request Request) error {
		value, err := json.Marshal(request)
		if err != nil {
			return err
		}
		record := &kgo.Record{
			Topic: topic, Value: value,
			Headers: []kgo.RecordHeader{{Key: "traceparent", Value: []byte(traceparent)}},
		}
		if key != "" {
			record.Key = []byte(key) // nil is no key; an empty one would be a key
		}
		if err := client.ProduceSync(ctx, record).FirstErr(); err != nil {
			return err
		}
		id := request.TaskID
		if id == "" { // UUIDv5 of where and when the record lies: docs/wire.md
			place := fmt.Sprintf("%s/%s/%d/%d/%d", cluster, topic, record.Partition, record.Offset, record.Timestamp.UnixMilli())
			id = uuid.NewSHA1(derived, []byte(place)).String()
		}
		open[id] = true
		band := topic[strings.LastIndex(topic, ".")+1:]
		fmt.Printf("sent %s %s %s-%d@%d\n", name, id, band, record.Partition, record.Offset)
		return nil
	}
	parameters := map[string]any{"steps": steps}
	id := uuid.NewString()
	if err := send("by-id", id, Request{TaskType: "countdown", TaskID: id, Parameters: parameters}); err != nil {
		return nil, err
	}
	ordered := Request{TaskType: "countdown", TaskID: uuid.NewString(), OrderingKey: key, Parameters: parameters}
	if err := send("in-order", key, ordered); err != nil {
		return nil, err
	}
	if err := send("bare", "", Request{TaskType: "countdown", Parameters: parameters}); err != nil {
		return nil, err
	}
	return open, nil
}

func random(size int) []byte {
	bytes := make([]byte, size)
	_, _ = rand.Read(bytes) // never fails
	return bytes
}

// follow prints the events of the open tasks until none is open.
func follow(ctx context.Context, client *kgo.Client, open map[string]bool) error {
	failed := 0
	for len(open) > 0 {
		fetches := client.PollFetches(ctx)
		if ctx.Err() != nil {
			return fmt.Errorf("%d tasks have not ended within %s. Does a worker run?", len(open), wait)
		}
		if err := fetches.Err(); err != nil {
			return err
		}
		for record := range fetches.RecordsAll() {
			if len(record.Value) == 0 || record.Value[0] != '{' {
				continue // a tombstone, or Avro: this reads JSON
			}
			var event Event
			if err := json.Unmarshal(record.Value, &event); err != nil {
				return err
			}
			if !open[event.TaskID] {
				continue
			}
			text := cmp.Or(event.Error, event.Message)
			if event.Status == "completed" {
				text = string(event.Result)
			}
			fmt.Printf("%s %s %.0f%% %s\n", event.TaskID, event.Status, event.Progress*100, text)
			switch event.Status {
			case "completed":
				delete(open, event.TaskID)
			case "failed", "cancelled":
				delete(open, event.TaskID)
				failed++
			}
		}
	}
	if failed > 0 {
		return fmt.Errorf("%d tasks did not complete", failed)
	}
	return nil
}
