"""Submits the long inference to a query service and follows it: by the client (SSE), then once more by WebSocket.

Run it: python follow.py http://127.0.0.1:8080
"""

import asyncio
import json
import sys

from websockets.asyncio.client import connect  # any WebSocket client does

from streamtask import AsyncClient

REQUEST = {"prompt": "请分析市场趋势并预测未来三个月的发展", "max_tokens": 4096, "temperature": 0.8}


async def main(url: str) -> None:
    async with AsyncClient(url=url) as client:
        receipt = await client.submit("long_inference", REQUEST, priority=8, timeout=300)
        async with asyncio.TaskGroup() as group:
            group.create_task(by_websocket(url, receipt.task_id))
            async for task in receipt.events():  # goes on by itself when the service restarts
                print("sse", task.status.value, task.progress, task.message, flush=True)
        print(json.dumps(await receipt.result()))


async def by_websocket(url: str, task_id: str) -> None:
    async with connect(f"ws{url.removeprefix('http')}/ws") as socket:
        await socket.send(json.dumps({"action": "subscribe", "id": "mine", "task_id": task_id}))
        async for text in socket:
            frame = json.loads(text)
            if frame["type"] == "event":
                print("ws", frame["task"]["status"], frame["task"].get("progress"), flush=True)
            elif frame["type"] == "end":
                return


asyncio.run(main(sys.argv[1]))
