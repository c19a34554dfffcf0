#!/usr/bin/env bash
# Three requests by kcat, and their status events until each task has ended. Needs kcat and jq.
#
#     STREAMTASK_BOOTSTRAP_SERVERS=127.0.0.1:9092 ./submit.sh [STEPS [ORDERING_KEY]]
set -euo pipefail

brokers=${STREAMTASK_BOOTSTRAP_SERVERS:-127.0.0.1:9092}
requests=${STREAMTASK_PREFIX:-tasks}.requests.normal
status=${STREAMTASK_PREFIX:-tasks}.status
steps=${1:-2}
ordering_key=${2:-customer-42}
wait_s=60 # for each of them

traceparent=00-$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')-$(od -An -N8 -tx1 /dev/urandom | tr -d ' \n')-01

new_id() { uuidgen 2>/dev/null || cat /proc/sys/kernel/random/uuid; }

# partitioner: kcat's own (CRC32) puts a key where no other client looks for it.
# enable.idempotence: kcat's own retries write a request once.
send() { # NAME KEY REQUEST; an empty KEY is none. Sets origin
    local told
    told=$(kcat -P -v -v -b "$brokers" -t "$requests" ${2:+-k "$2"} -H "traceparent=$traceparent" \
        -X partitioner=murmur2_random -X enable.idempotence=true <<<"$3" 2>&1) || true
    if [[ ! $told =~ delivered\ to\ partition\ ([0-9]+)\ \(offset\ ([0-9]+)\) ]]; then
        echo "$told" >&2
        exit 1
    fi
    origin=${requests##*.}-${BASH_REMATCH[1]}@${BASH_REMATCH[2]}
    echo "sent $1 $(jq -r '.task_id // "-"' <<<"$3") $origin"
}

# The events of one request record, from where the topic ended before it was sent.
follow() { # ORIGIN
    local partition event line state=created
    partition=${1##*-}
    partition=${partition%@*} # an event has the partition number of its request
    while IFS= read -r event; do
        line=$(jq -Rr --arg origin "$1" 'fromjson? | select(.origin == $origin)
            | "\(.task_id) \(.status) \((.progress // 0) * 100 | floor)% \(
                if .status == "completed" then .result | tojson else .error // .message end)"' <<<"$event")
        if [[ -z $line ]]; then continue; fi
        echo "$line"
        read -r _ state _ <<<"$line"
        case $state in completed | failed | cancelled) break ;; esac
    done < <(exec timeout "$wait_s" kcat -C -u -q -b "$brokers" -t "$status" -p "$partition" -o "${ends[$partition]}" \
        -X isolation.level=read_committed -f '%s\n')
    kill $! 2>/dev/null || true
    case $state in
    completed) ;;
    failed | cancelled) failed=1 ;;
    *) echo "$1 has not ended within $wait_s s. Does a worker run?" >&2 && failed=1 ;;
    esac
}

partitions=$(kcat -L -J -b "$brokers" -t "$status" | jq '.topics[0].partitions | length')
if ((partitions == 0)); then
    echo "$status does not exist. Make it: streamtask topics create" >&2
    exit 1
fi
places=()
for ((p = 0; p < partitions; p++)); do places+=(-t "$status:$p:-1"); done
look() { kcat -Q -b "$brokers" "${places[@]}"; } # a topic that was just made may have no leader yet
looked=$(look) || { sleep 1 && looked=$(look); }
declare -a ends
while read -r _ partition _ offset; do ends[${partition//[^0-9]/}]=$offset; done <<<"$looked"

echo "trace $traceparent"
parameters=$(jq -nc --argjson steps "$steps" '{$steps}')
task_id=$(new_id)
send by-id "$task_id" "$(jq -nc --arg task_id "$task_id" --argjson parameters "$parameters" \
    '{task_type: "countdown", $task_id, $parameters}')"
origins=("$origin")
send in-order "$ordering_key" "$(jq -nc --arg task_id "$(new_id)" --arg ordering_key "$ordering_key" \
    --argjson parameters "$parameters" '{task_type: "countdown", $task_id, $ordering_key, $parameters}')"
origins+=("$origin")
# No id and no key: the events name the record that was sent in `origin`, and the task's id with it.
send bare "" "$(jq -nc --argjson parameters "$parameters" '{task_type: "countdown", $parameters}')"
origins+=("$origin")

failed=0
for origin in "${origins[@]}"; do follow "$origin"; done
exit $failed
