"""An HTTP/1.1 server that says who it is, counts, and fails when it is told to. Usage: origin.py PORT NAME.

/hang          no answer
/status/CODE   this status
/echo          the request's header fields, as JSON
anything else  its name; every answer has it as `x-from`

Each line of standard input is an order, answered by a line of JSON:
fail CODE K N  of every N requests the first K get CODE
work           no more of that
close, open    stop listening and reset every connection; listen again
count          how many requests came
tell           that, and the last of them
"""

import asyncio
import collections
import json
import socket
import struct
import sys

port, name = int(sys.argv[1]), sys.argv[2]
open_now = set()
last = collections.deque(maxlen=100)
count = 0
failing = None


class Origin(asyncio.Protocol):
    def connection_made(self, transport):
        self.wire, self.got = transport, b""
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        open_now.add(transport)

    def connection_lost(self, error):
        open_now.discard(self.wire)

    def data_received(self, data):
        self.got += data
        while (end := self.got.find(b"\r\n\r\n")) >= 0:
            first, *lines = self.got[:end].decode().split("\r\n")
            fields = {key.lower(): value.strip() for key, value in (line.split(":", 1) for line in lines)}
            assert "transfer-encoding" not in fields, "bodies have a length here"
            end += 4 + int(fields.get("content-length", 0))
            if len(self.got) < end:
                return
            self.got = self.got[end:]
            method, path, _ = first.split(" ")
            self.answer(method, path, fields)

    def answer(self, method, path, fields):
        global count
        status = 200
        if failing and count % failing[2] < failing[1]:
            status = failing[0]
        count += 1
        if path.startswith("/status/"):
            status = int(path.split("/")[2])
        last.append({"method": method, "path": path, "status": status, "fields": fields})
        if path == "/hang":
            return
        body = (json.dumps(fields) if path == "/echo" else name).encode()
        head = f"HTTP/1.1 {status} Told\r\nContent-Length: {len(body)}\r\nX-From: {name}\r\n\r\n"
        self.wire.write(head.encode() + body)


async def listen():
    listener = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=512)
    return await asyncio.get_running_loop().create_server(Origin, sock=listener)


async def main():
    global failing
    server = await listen()
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    while line := (await lines.readline()).decode().split():
        if line[0] == "fail":
            failing = [int(word) for word in line[1:]]
        elif line[0] == "work":
            failing = None
        elif line[0] == "close":
            server.close()
            for transport in list(open_now):
                linger = struct.pack("ii", 1, 0)
                transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                transport.abort()
        elif line[0] == "open":
            server = await listen()
        told = {"requests": count, "last": list(last) if line[0] == "tell" else []}
        print(json.dumps(told), flush=True)


asyncio.run(main())
