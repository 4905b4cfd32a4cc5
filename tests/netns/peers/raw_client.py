"""Sends what a plan says over raw sockets and tells what came back; it judges nothing. Usage: raw_client.py PLAN CONCURRENCY PATIENCE.

PLAN is a JSON list of {"id", "host", "port", "steps", "honest"}. Steps: ["send", hex], ["read", METHOD] (one response),
["raw", count] (so many bytes), ["drip", hex, seconds] (byte by byte, until something comes back), ["end"] (end our direction), ["pause", seconds], ["gone"] (until the other side closes or resets). Behind
the steps, and while their connection is still open, an honest request goes over a connection of its own.
Prints one JSON line per case.
"""

import asyncio
import json
import re
import sys
import time

PATIENCE = float(sys.argv[3])  # Seconds of silence that count as the end.
STATUS_LINE = re.compile(rb"HTTP/1\.[01] ([1-9][0-9]{2})(?: [^\r\n]*)?\Z")


class Cut(Exception):
    """The connection ended inside a response: closed or reset."""


class Wire:
    def __init__(self, reader, writer):
        self.reader, self.writer, self.buffer = reader, writer, b""

    @classmethod
    async def open(cls, host, port):
        return cls(*await asyncio.open_connection(host, port, limit=1 << 22))

    async def send(self, data):
        try:
            self.writer.write(data)
            await self.writer.drain()
        except OSError:
            pass  # What it was told before shows in the reading.

    async def fill(self):
        try:
            part = await asyncio.wait_for(self.reader.read(1 << 16), PATIENCE)
        except asyncio.TimeoutError:
            raise Cut("silent")
        except OSError:
            raise Cut("reset")
        if not part:
            raise Cut("closed")
        self.buffer += part

    async def until(self, mark):
        while mark not in self.buffer:
            await self.fill()
        found, _, self.buffer = self.buffer.partition(mark)
        return found

    async def exactly(self, count, into):
        while count:
            if not self.buffer:
                await self.fill()
            part, self.buffer = self.buffer[:count], self.buffer[count:]
            into += part
            count -= len(part)

    async def head(self):
        lines = (await self.until(b"\r\n\r\n")).split(b"\r\n")
        status = STATUS_LINE.match(lines[0])
        if not status:
            raise Cut(f"no status line: {lines[0]!r}")
        fields = []
        for line in lines[1:]:
            name, colon, value = line.partition(b":")
            if not colon or not re.fullmatch(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name) or re.search(rb"[\0\r\n]", value):
                raise Cut(f"no field line: {line!r}")
            fields.append((name.lower().decode(), value.strip(b" \t").decode("latin1")))
        return int(status[1]), fields

    async def read(self, method):
        """One response with its interim ones; strict, for what we send must be flawless."""
        told = {"interim": [], "status": 0, "fields": [], "body": "", "trailers": [], "complete": False, "end": ""}
        body = bytearray()
        try:
            while True:
                status, fields = await self.head()
                if status >= 200 or status == 101:
                    break
                told["interim"].append(status)
            told.update(status=status, fields=fields)
            lengths = [v for n, v in fields if n == "content-length"]
            codings = [v for n, v in fields if n == "transfer-encoding"]
            if method == "HEAD" or status in (204, 304) or status == 101 or (method == "CONNECT" and status < 300):
                pass
            elif codings:
                if codings != ["chunked"] or lengths:
                    raise Cut("odd framing")
                while True:
                    size = await self.until(b"\r\n")
                    if not re.fullmatch(rb"[0-9a-fA-F]{1,8}", size):
                        raise Cut(f"chunk size {size!r}")
                    if int(size, 16) == 0:
                        break
                    await self.exactly(int(size, 16), body)
                    if await self.until(b"\r\n"):
                        raise Cut("chunk end")
                while line := await self.until(b"\r\n"):
                    told["trailers"].append(line.decode("latin1"))
            elif lengths:
                if len(lengths) != 1 or not re.fullmatch("[0-9]+", lengths[0]):
                    raise Cut("odd length")
                await self.exactly(int(lengths[0]), body)
            else:
                told["until_close"] = True
                try:
                    while True:
                        body += self.buffer
                        self.buffer = b""
                        await self.fill()
                except Cut as cut:
                    if str(cut) != "closed":
                        raise
            told["complete"] = True
        except Cut as cut:
            told["end"] = str(cut)
        told["body"] = bytes(body).hex()
        return told

    async def drip(self, data, pause):
        for byte in data:
            await self.send(bytes([byte]))
            try:
                self.buffer += await asyncio.wait_for(self.reader.read(1 << 16), pause)
                break
            except asyncio.TimeoutError:
                pass
            except OSError:
                break

    async def gone(self):
        try:
            while True:
                await self.fill()
        except Cut as cut:
            return str(cut)

    def drop(self):
        self.writer.transport.abort()


async def honest(case):
    wire = await Wire.open(case["host"], case["port"])
    await wire.send(b"GET /honest-%b HTTP/1.1\r\nHost: honest\r\n\r\n" % case["id"].encode())
    told = await wire.read("GET")
    told["extra"] = wire.buffer.hex()
    wire.drop()
    return told


async def run(case):
    told = {"id": case["id"], "responses": [], "state": "open", "raw": "", "started": time.time()}
    try:
        wire = await Wire.open(case["host"], case["port"])
        for step, *words in case["steps"]:
            if step == "send":
                await wire.send(bytes.fromhex(words[0]))
            elif step == "read":
                told["responses"].append(await wire.read(words[0]))
            elif step == "raw":
                raw = bytearray()
                try:
                    await wire.exactly(words[0], raw)
                except Cut as cut:
                    told["raw_end"] = str(cut)
                told["raw"] += bytes(raw).hex()
            elif step == "drip":
                await wire.drip(bytes.fromhex(words[0]), words[1])
            elif step == "end":
                try:
                    wire.writer.write_eof()
                except OSError:
                    pass
            elif step == "pause":
                await asyncio.sleep(words[0])
            elif step == "gone":
                told["state"] = await wire.gone()
        told["extra"] = wire.buffer.hex()
        if case.get("honest", True):
            told["honest"] = await honest(case)
        wire.drop()
    except OSError as error:
        told["error"] = repr(error)
    told["seconds"] = time.time() - told.pop("started")
    print(json.dumps(told), flush=True)


async def main():
    with open(sys.argv[1], encoding="utf-8") as file:
        plan = json.load(file)
    places = asyncio.Semaphore(int(sys.argv[2]))

    async def bounded(case):
        async with places:
            await run(case)

    await asyncio.gather(*(bounded(case) for case in plan))
    print(json.dumps({"id": "done"}), flush=True)


asyncio.run(main())
