"""Sends HTTP/2 frame by frame as a plan says, and tells what came back; it judges nothing. Frames and header blocks are made by
hyperframe and hpack, which check nothing. Usage: h2_client.py PLAN CONCURRENCY PATIENCE.

PLAN is a JSON list of {"id", "host", "port", "steps": [line…], "awaits": [stream…], "ends": bool, "after": bool}; the lines are those of
frames.txt. Behind the steps the streams of "awaits" are waited for, or with "ends" the end of the connection; with "after" another request
goes over it. Then an honest one goes over a connection of its own. Prints one JSON line per case.
"""

import asyncio
import json
import re
import socket
import sys

import hpack
from hyperframe import frame as frames

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
PATIENCE = float(sys.argv[3]) if __name__ == "__main__" else 0
CODES = dict(enumerate((
    "NO_ERROR PROTOCOL_ERROR INTERNAL_ERROR FLOW_CONTROL_ERROR SETTINGS_TIMEOUT STREAM_CLOSED FRAME_SIZE_ERROR REFUSED_STREAM CANCEL "
    "COMPRESSION_ERROR CONNECT_ERROR ENHANCE_YOUR_CALM INADEQUATE_SECURITY HTTP_1_1_REQUIRED"
).split()))
NUMBERS = {name: code for code, name in CODES.items()}
SETTINGS = {"TABLE": 1, "PUSH": 2, "STREAMS": 3, "WINDOW": 4, "FRAME": 5, "LIST": 6, "CONNECT": 8}
ESCAPE = re.compile(rb"\\(?:x([0-9a-f]{2})|\{(\d+):([^{}]*)\}|(.))", re.S)
LAST = 1001


def unescape(text):
    def one(found):
        if found[1]:
            return bytes([int(found[1], 16)])
        if found[2]:
            return unescape(found[3].decode("latin1")) * int(found[2])
        return {b"r": b"\r", b"n": b"\n", b"t": b"\t", b"0": b"\0", b"\\": b"\\"}[found[4]]

    return ESCAPE.sub(one, text.encode("latin1"))


class Connection:
    """On a bare socket: a transport of asyncio that cannot write any more throws away what came before the reset."""

    def __init__(self, socket):
        self.socket, self.received, self.broken = socket, bytearray(), False
        self.writing = asyncio.Lock()
        self.encoder, self.decoder = hpack.Encoder(), hpack.Decoder(max_header_list_size=1 << 20)
        self.streams, self.goaway, self.end, self.pings, self.acks = {}, None, "", 0, 0
        self.changed = asyncio.Event()
        self.task = None

    @classmethod
    async def open(cls, host, port):
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        connection = cls(socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK))
        connection.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await asyncio.get_running_loop().sock_connect(connection.socket, (host, port))
        connection.task = asyncio.create_task(connection.read())
        return connection

    corked = None

    async def send(self, data):
        if self.corked is not None:
            self.corked += data
            return
        try:
            async with self.writing:
                await asyncio.get_running_loop().sock_sendall(self.socket, data)
        except OSError:
            self.broken = True  # What it was told before shows in the reading.

    async def take(self, length):
        while len(self.received) < length:
            try:
                data = await asyncio.get_running_loop().sock_recv(self.socket, 1 << 16)
            except OSError:
                self.broken, data = True, b""
            if not data:
                raise asyncio.IncompleteReadError(bytes(self.received), length)
            self.received += data
        taken = bytes(self.received[:length])
        del self.received[:length]
        return taken

    async def frame(self, frame):
        await self.send(frame.serialize())

    async def read(self):
        block = b""
        try:
            while True:
                head = await self.take(9)
                frame, length = frames.Frame.parse_frame_header(memoryview(head))
                frame.parse_body(memoryview(await self.take(length)))
                stream = self.streams.setdefault(frame.stream_id, {"body": "", "heads": [], "ended": False, "rst": None})
                if isinstance(frame, (frames.HeadersFrame, frames.ContinuationFrame)):
                    block += bytes(frame.data)
                    if "END_HEADERS" in frame.flags:
                        stream["heads"].append([[str(n), str(v)] for n, v in self.decoder.decode(block)])
                        block = b""
                elif isinstance(frame, frames.DataFrame):
                    stream["body"] += bytes(frame.data).hex()
                elif isinstance(frame, frames.RstStreamFrame):
                    stream["rst"] = CODES.get(frame.error_code, frame.error_code)
                elif isinstance(frame, frames.GoAwayFrame):
                    debug = bytes(frame.additional_data).decode("latin1")
                    self.goaway = {"code": CODES.get(frame.error_code), "last": frame.last_stream_id, "debug": debug}
                elif isinstance(frame, frames.SettingsFrame):
                    if "ACK" in frame.flags:
                        self.acks += 1
                    else:
                        await self.frame(frames.SettingsFrame(0, flags=["ACK"]))
                elif isinstance(frame, frames.PingFrame) and "ACK" in frame.flags:
                    self.pings += 1
                if "END_STREAM" in frame.flags:
                    stream["ended"] = True
                self.changed.set()
        except asyncio.IncompleteReadError:
            self.end = "reset" if self.broken else "closed"
        except Exception as error:
            self.end = f"not understood: {error!r}"
        self.changed.set()

    async def until(self, condition, patience=None):
        loop = asyncio.get_running_loop()
        until = loop.time() + (patience or PATIENCE)
        while not condition() and not self.end:
            self.changed.clear()
            try:
                await asyncio.wait_for(self.changed.wait(), until - loop.time())
            except asyncio.TimeoutError:
                return
        return

    def done(self, stream):
        found = self.streams.get(stream)
        return bool(found and (found["ended"] or found["rst"]))

    def fields(self, words):
        made = []
        for word in words:
            if word.startswith("@"):
                method, path = re.fullmatch(r"@([A-Z]+)(.*)", word).groups()
                made += [(b":method", method.encode()), (b":scheme", b"http"), (b":authority", b"a")]
                made.append((b":path", unescape(path)))
            else:
                name, value = re.fullmatch(r"(:?[^=]*)=(.*)", word, re.S).groups()
                made.append((unescape(name), unescape(value)))
        return made

    async def step(self, line):
        what, _, rest = line.partition(" ")
        if what == "BYTES":
            return await self.send(unescape(rest))
        if what == "WAIT":
            return await asyncio.sleep(0.05)
        if what == "FLOOD":
            count, step = rest.split(" ", 1)
            self.corked = b""
            await self.step(step)
            data, self.corked = self.corked * int(count), None
            return await self.send(data)
        words, _, content = rest.partition(" |")
        content = content.removeprefix(" ")
        words = words.split()
        options = dict(word.partition("=")[::2] for word in words)
        number = int(words[0]) if words and words[0].isdigit() else 0
        flags = [name for option, name in (("end", "END_STREAM"), ("ack", "ACK")) if option in options]
        pad = {}
        if "pad" in options:
            flags.append("PADDED")
            pad = {"pad_length": int(options["pad"])}
        if what == "AWAIT":
            await self.until(lambda: self.done(number))
        elif what in ("HEADERS", "CONTINUATION", "PUSH"):
            if "open" not in options:
                flags.append("END_HEADERS")
            block = unescape(content[4:]) if content.startswith("raw ") else self.encoder.encode(self.fields(content.split()))
            if "part" in options:
                start, end = options["part"].split("-")
                if int(start) == 0:
                    self.block = block
                block = self.block[int(start) : int(end) if end else None]
            if what == "HEADERS":
                made = frames.HeadersFrame(number, block, **pad)
                if "depends" in options:
                    flags.append("PRIORITY")
                    made.depends_on = int(options["depends"])
            elif what == "PUSH":
                made = frames.PushPromiseFrame(number, promised_stream_id=2, data=block)
            else:
                made = frames.ContinuationFrame(number, block)
            for flag in flags:
                made.flags.add(flag)
            await self.frame(made)
        elif what == "DATA":
            made = frames.DataFrame(number, unescape(content), **pad)
            for flag in flags:
                made.flags.add(flag)
            await self.frame(made)
        elif what == "RST":
            await self.frame(frames.RstStreamFrame(number, NUMBERS[words[1]]))
        elif what == "SETTINGS":
            values = {SETTINGS.get(k) or int(k): int(v) for k, v in options.items() if v}
            await self.frame(frames.SettingsFrame(0, settings=values, flags=flags))
        elif what == "PING":
            await self.frame(frames.PingFrame(0, b"12345678", flags=flags))
        elif what == "WINDOW":
            await self.frame(frames.WindowUpdateFrame(number, int(words[1])))
        elif what == "PRIORITY":
            await self.frame(frames.PriorityFrame(number, depends_on=int(words[1]), stream_weight=7))
        elif what == "GOAWAY":
            await self.frame(frames.GoAwayFrame(0, 0, NUMBERS[words[0]]))
        elif what == "FRAME":
            kind, flag_byte, stream = (int(word, 0) for word in words[:3])
            body = unescape(content)
            head = len(body).to_bytes(3, "big") + bytes([kind, flag_byte]) + stream.to_bytes(4, "big")
            await self.send(head + body)
        else:
            raise ValueError(line)

    async def get(self, stream, path):
        fields = [(":method", "GET"), (":scheme", "http"), (":authority", "a"), (":path", path)]
        made = frames.HeadersFrame(stream, self.encoder.encode(fields), flags=["END_HEADERS", "END_STREAM"])
        await self.frame(made)
        await self.until(lambda: self.done(stream))
        return self.streams.get(stream)

    async def drop(self):
        self.task.cancel()
        await asyncio.wait([self.task])
        self.socket.close()


async def run(case):
    told = {"id": case["id"]}
    try:
        one = await Connection.open(case["host"], case["port"])
        if case["steps"][:1] != ["RAW"]:
            await one.send(PREFACE)
            await one.frame(frames.SettingsFrame(0, settings={4: 1 << 20}))
        for line in case["steps"]:
            if line != "RAW":
                await one.step(line)
        if case["ends"]:
            await one.until(lambda: False)
        else:
            await one.until(lambda: all(one.done(stream) for stream in case["awaits"]))
        if case["after"]:
            told["after"] = await one.get(LAST, f"/after-{case['id']}")
        told.update(streams=one.streams, goaway=one.goaway, end=one.end, pings=one.pings, acks=one.acks)
        other = await Connection.open(case["host"], case["port"])
        await other.send(PREFACE)
        await other.frame(frames.SettingsFrame(0))
        told["honest"] = await other.get(1, f"/honest-{case['id']}")
        await other.drop()
        await one.drop()
    except Exception as error:
        told["error"] = repr(error)
    print(json.dumps(told), flush=True)


async def main():
    with open(sys.argv[1], encoding="utf-8") as file:
        plan = json.load(file)
    places = asyncio.Semaphore(int(sys.argv[2]))

    async def bounded(case):
        async with places:
            await run(case)

    await asyncio.gather(*(bounded(case) for case in plan))


if __name__ == "__main__":
    asyncio.run(main())
