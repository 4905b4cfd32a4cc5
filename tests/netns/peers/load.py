"""Asks an HTTP/1.1 server without a pause, on connections that stay open. Usage: load.py HOST PORT CONNECTIONS PER_SECOND [PATH].

PER_SECOND 0 is as fast as it goes. Each line of standard input is an order, answered by a line of JSON:
mark   begin to count anew: requests that are begun from now on
tell   how those went: `from`, how many answers each server gave; `last`, seconds from the mark until the last request began that it
       answered; `streak`, answers in a row that were not of `former`, the servers named behind `mark`
stop   begin no more, and tell when all are over
`failed` are all that did not get 200 since the start, `whys` the first of them.
"""

import asyncio
import collections
import json
import sys
import time

host, port, connections, per_second = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
path = sys.argv[5] if len(sys.argv) > 5 else "/"
request = f"GET {path} HTTP/1.1\r\nHost: web\r\n\r\n".encode()
failed, whys, stopping = 0, [], False


class Count:
    def __init__(self, former):
        self.begun, self.attempted, self.former, self.streak = time.monotonic(), 0, former, 0
        self.origins, self.last = collections.Counter(), {}

    def answered(self, origin, at):
        if at < self.begun:
            return
        self.attempted += 1
        self.origins[origin] += 1
        self.last[origin] = max(self.last.get(origin, 0), at - self.begun)
        self.streak = 0 if origin in self.former else self.streak + 1


counted = Count([])


def fails(why):
    global failed
    failed += 1
    if len(whys) < 20:
        whys.append(why)


async def ask():
    """One connection's requests. One that the server has ended in order is made anew."""
    wire = None
    while not stopping:
        at = time.monotonic()
        try:
            if wire is None:
                wire = await asyncio.wait_for(asyncio.open_connection(host, port), 5)
            wire[1].write(request)
            head = (await asyncio.wait_for(wire[0].readuntil(b"\r\n\r\n"), 10)).decode().lower()
            fields = dict(line.split(": ", 1) for line in head.split("\r\n")[1:-2])
            body = await asyncio.wait_for(wire[0].readexactly(int(fields["content-length"])), 10)
            status = head.split(" ")[1]
            counted.answered(fields.get("x-from", status), at)
            if status != "200":
                fails(f"{head}{body.decode()}")
            if fields.get("connection") == "close":
                wire[1].close()
                wire = None
        except (OSError, asyncio.IncompleteReadError, asyncio.TimeoutError) as error:
            fails(f"{type(error).__name__} {error}")
            if wire:
                wire[1].close()
            wire = None
            await asyncio.sleep(0.02)
        if per_second:
            await asyncio.sleep(max(0, at + connections / per_second - time.monotonic()))


async def main():
    global counted, stopping
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    asking = [asyncio.create_task(ask()) for _ in range(connections)]
    while line := (await lines.readline()).decode().split():
        if line[0] == "mark":
            counted = Count(line[1:])
        elif line[0] == "stop":
            stopping = True
            await asyncio.gather(*asking)
        told = {"attempted": counted.attempted, "from": counted.origins, "last": counted.last, "streak": counted.streak}
        print(json.dumps(told | {"failed": failed, "whys": whys}), flush=True)
    stopping = True


asyncio.run(main())
