// Submits the long inference to a query service and follows it to its end, also over a restart of the service.
// Node 18 or newer, nothing to install: node follow.mjs http://127.0.0.1:8080
// A browser has all of this built in: new EventSource(url) (see docs/live.md).

const service = process.argv[2];

const answer = await fetch(`${service}/tasks`, {
  method: "POST",
  headers: { "Content-Type": "application/json" },
  body: JSON.stringify({
    task_type: "long_inference",
    description: "执行复杂的多步骤推理",
    parameters: { prompt: "请分析市场趋势并预测未来三个月的发展", max_tokens: 4096, temperature: 0.8 },
    priority: 8,
    timeout_seconds: 300,
  }),
});
if (answer.status !== 202) throw new Error(await answer.text());

for await (const task of follow(service + answer.headers.get("Location") + "/events")) {
  console.log(task.status, task.progress ?? "", task.message);
  if (task.result) console.log(JSON.stringify(task.result));
}

async function* follow(url) {
  let lastId; // of the last event: with it every replica goes on behind it
  for (;;) {
    try {
      const stream = await fetch(url, { headers: lastId === undefined ? {} : { "Last-Event-ID": lastId } });
      if (stream.status === 204) return; // it had ended, and we know
      if (stream.status === 503) throw new TypeError("not ready: again in a moment");
      if (!stream.ok) throw new Error(await stream.text());
      let held = "";
      for await (const text of stream.body.pipeThrough(new TextDecoderStream())) {
        const blocks = (held + text).split("\n\n");
        held = blocks.pop();
        for (const block of blocks) {
          const data = [];
          for (const line of block.split("\n")) {
            if (line.startsWith("id: ")) lastId = line.slice(4);
            if (line.startsWith("data: ")) data.push(line.slice(6));
          }
          if (!data.length) continue; // a sign of life
          const task = JSON.parse(data.join("\n"));
          yield task;
          if (["completed", "failed", "cancelled"].includes(task.status)) return;
        }
      }
    } catch (error) {
      if (!(error instanceof TypeError)) throw error; // fetch throws these when the connection breaks
    }
    await new Promise((resolve) => setTimeout(resolve, 1000));
  }
}
