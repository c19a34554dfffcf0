// Three requests by kafkajs, and their status events until each task has ended.
//
//     STREAMTASK_BOOTSTRAP_SERVERS=127.0.0.1:9092 node submit.mjs [STEPS [ORDERING_KEY]]
import { createHash, randomBytes, randomUUID } from 'node:crypto'
import kafkajs from 'kafkajs'
import { compressFrame, decompressFrame } from 'lz4-napi'

const { CompressionCodecs, CompressionTypes, Kafka, Partitioners, logLevel } = kafkajs
const brokers = (process.env.STREAMTASK_BOOTSTRAP_SERVERS ?? '127.0.0.1:9092').split(',')
const prefix = process.env.STREAMTASK_PREFIX ?? 'tasks'
const [requests, status] = [`${prefix}.requests.normal`, `${prefix}.status`]
const steps = Number(process.argv[2] ?? 2)
const orderingKey = process.argv[3] ?? 'customer-42'
const WAIT_MS = 60_000 // for all of them

// Workers write status events in LZ4, which kafkajs leaves to its user.
CompressionCodecs[CompressionTypes.LZ4] = () => ({
  compress: (encoder) => compressFrame(encoder.buffer),
  decompress: (bytes) => decompressFrame(bytes),
})
const kafka = new Kafka({ clientId: 'submit.mjs', brokers, logLevel: logLevel.NOTHING }) // what fails is thrown
const admin = kafka.admin()
const producer = kafka.producer({
  createPartitioner: Partitioners.DefaultPartitioner, // Java's; LegacyPartitioner is not
  idempotent: true, // its own retries write a request once
})
const consumer = kafka.consumer({
  groupId: `submit-${randomUUID()}`,
  readUncommitted: false, // the default: events of an aborted transaction never happened
})

// The id of a request that names none (docs/wire.md): UUIDv5 of where and when its record lies.
function derivedId(clusterId, topic, partition, offset, timestamp) {
  const hash = createHash('sha1')
    .update('6f1d5c1e6d0e5b8a9a5173747265616d', 'hex')
    .update(`${clusterId}/${topic}/${partition}/${offset}/${timestamp}`)
    .digest()
    .subarray(0, 16)
  hash[6] = (hash[6] & 0x0f) | 0x50
  hash[8] = (hash[8] & 0x3f) | 0x80
  return hash.toString('hex').replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, '$1-$2-$3-$4-$5')
}

async function main() {
  await Promise.all([admin.connect(), producer.connect(), consumer.connect()])
  const { clusterId } = await admin.describeCluster()
  const ends = await admin.fetchTopicOffsets(status) // events of what is sent from here on lie behind

  const traceparent = `00-${randomBytes(16).toString('hex')}-${randomBytes(8).toString('hex')}-01`
  console.log('trace', traceparent)
  const open = new Set()

  async function send(name, key, request) {
    const now = Date.now().toString()
    const message = { key, value: JSON.stringify(request), headers: { traceparent }, timestamp: now }
    const [told] = await producer.send({ topic: requests, acks: -1, messages: [message] })
    const timestamp = told.logAppendTime === '-1' ? now : told.logAppendTime // the topic may set its own
    const taskId = request.task_id ?? derivedId(clusterId, requests, told.partition, told.baseOffset, timestamp)
    open.add(taskId)
    console.log(`sent ${name} ${taskId} ${requests.split('.').at(-1)}-${told.partition}@${told.baseOffset}`)
  }

  const taskId = randomUUID()
  await send('by-id', taskId, { task_type: 'countdown', task_id: taskId, parameters: { steps } })
  await send('in-order', orderingKey, {
    task_type: 'countdown', task_id: randomUUID(), ordering_key: orderingKey, parameters: { steps },
  })
  await send('bare', null, { task_type: 'countdown', parameters: { steps } })

  let failed = false
  await consumer.subscribe({ topic: status })
  await new Promise((resolve, reject) => {
    const deadline = setTimeout(() => {
      reject(new Error(`${[...open].join(', ')}: not ended within ${WAIT_MS / 1000} s. Does a worker run?`))
    }, WAIT_MS)
    const eachMessage = async ({ message }) => {
      if (message.value?.[0] !== 0x7b) return // a tombstone, or Avro: this reads JSON
      const event = JSON.parse(message.value)
      if (!open.has(event.task_id)) return
      const text = event.status === 'completed' ? JSON.stringify(event.result) : event.error ?? event.message
      console.log(`${event.task_id} ${event.status} ${Math.floor((event.progress ?? 0) * 100)}% ${text}`)
      if (event.status === 'created' || event.status === 'running') return
      failed ||= event.status !== 'completed'
      open.delete(event.task_id)
      if (open.size === 0) {
        clearTimeout(deadline)
        resolve()
      }
    }
    consumer.on(consumer.events.CRASH, ({ payload }) => payload.restart || reject(payload.error))
    consumer.run({ autoCommit: false, eachMessage }).catch(reject)
    for (const { partition, high } of ends) consumer.seek({ topic: status, partition, offset: high })
  })
  return failed ? 1 : 0
}

main()
  .catch((error) => {
    console.error(error.message)
    return 1
  })
  .then(async (code) => {
    await Promise.allSettled([consumer.disconnect(), producer.disconnect(), admin.disconnect()])
    process.exit(code)
  })
