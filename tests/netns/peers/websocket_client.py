"""Talks to websocket_server.py in every way and checks what comes back. Usage: websocket_client.py ws://HOST:PORT [own address]."""

import asyncio
import os
import sys
import time

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.frames import CloseCode

URL = sys.argv[1]
OPTIONS = {"max_size": 64 << 20, "ping_interval": None, "proxy": None, "open_timeout": 10}


async def talks():
    async with connect(URL + "/talk", subprotocols=["chat.v9", "chat.v1"], **OPTIONS) as ws:
        assert ws.subprotocol == "chat.v1", ws.subprotocol
        assert "permessage-deflate" in ws.response.headers["Sec-WebSocket-Extensions"], ws.response.headers
        await ws.send("who")
        who = await ws.recv()
        assert len(sys.argv) < 3 or sys.argv[2] in who, who
        # Pings in both directions.
        await (await ws.ping(b"payload"))
        await ws.send("ping")
        assert await ws.recv() == "ponged"
        # Messages in parts, text and bytes, as they came.
        await ws.send(["Zwei ", "Stücke ", "€"])
        assert await ws.recv() == "Zwei Stücke €"
        for length in (0, 1, 125, 126, 65535, 65536):
            await ws.send(os.urandom(length) if length else b"")
            assert len(await ws.recv()) == length
        # Many small ones on their way at once.
        for n in range(1000):
            await ws.send(str(n))
        assert [await ws.recv() for _ in range(1000)] == [str(n) for n in range(1000)]
    assert ws.close_code == CloseCode.NORMAL_CLOSURE, ws.close_code


async def large():
    """8 MiB that do not compress, there and back; 16 MiB of which the receiver reads nothing for a while."""
    async with connect(URL + "/large", compression=None, **OPTIONS) as ws:
        data = os.urandom(8 << 20)
        await ws.send(data)
        assert await ws.recv() == data
        await ws.send("big 16777216")
        await asyncio.sleep(0.2)
        assert len(await ws.recv()) == 16 << 20


async def close_codes():
    for code, path in ((4001, "/code"), (1001, "/away")):
        async with connect(URL + path, **OPTIONS) as ws:
            await ws.close(code, "bye")
    for code in (4002, 1011):
        async with connect(URL + "/told", **OPTIONS) as ws:
            await ws.send(f"close {code}")
            try:
                await ws.recv()
                raise AssertionError("no close")
            except ConnectionClosed as closed:
                assert (closed.rcvd.code, closed.rcvd.reason) == (code, "as you wish"), closed


async def abrupt_ends():
    for how in ("drop", "reset"):
        async with connect(URL + "/abrupt", **OPTIONS) as ws:
            await ws.send(how)
            start = time.monotonic()
            try:
                await ws.recv()
                raise AssertionError("no end")
            except ConnectionClosed as closed:
                assert closed.rcvd is None, closed
            assert ws.close_code == CloseCode.ABNORMAL_CLOSURE and time.monotonic() - start < 2, how
    # Now we are the one that vanishes.
    async with connect(URL + "/vanish", **OPTIONS) as ws:
        await ws.send("here")
        assert await ws.recv() == "here"
        ws.transport.abort()


async def refused():
    try:
        await connect(URL + "/forbidden", **OPTIONS)
        raise AssertionError("not refused")
    except InvalidStatus as error:
        assert error.response.status_code == 403 and error.response.body == b"not here\n", error.response


async def many():
    async def one(n):
        async with connect(URL + "/many", **OPTIONS) as ws:
            for m in range(10):
                await ws.send(f"{n} {m}")
                assert await ws.recv() == f"{n} {m}"

    await asyncio.gather(*(one(n) for n in range(50)))


async def main():
    for act in (talks, large, close_codes, abrupt_ends, refused, many):
        await asyncio.wait_for(act(), 20)
        print(act.__name__, "done", flush=True)
    print("all is well", flush=True)


asyncio.run(main())
