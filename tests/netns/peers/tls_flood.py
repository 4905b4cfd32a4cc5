"""A flood of connections that never finish a handshake of TLS.

Usage: tls_flood.py HOST:PORT COUNT [--hello] [--over SECONDS] [--again], and prints JSON lines:
  {"begun": COUNT}              every connection has been opened once
  {"open": N, "answered": M}    after each line of standard input: how many are open now, and how many of those have heard something
"""

import argparse
import asyncio
import json
import resource
import ssl
import sys

parser = argparse.ArgumentParser()
parser.add_argument("to")
parser.add_argument("count", type=int)
parser.add_argument("--hello", action="store_true", help="send a whole ClientHello; else nothing at all")
parser.add_argument("--over", type=float, default=0, help="open them evenly over so many seconds")
parser.add_argument("--again", action="store_true", help="whenever one is ended, open another in its place")
arguments = parser.parse_args()

host, port = arguments.to.rsplit(":", 1)
_, most = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def client_hello():
    """As OpenSSL makes it. One is as good as another: whoever is to answer it cannot know that it is always the same."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    outgoing = ssl.MemoryBIO()
    try:
        context.wrap_bio(ssl.MemoryBIO(), outgoing).do_handshake()
    except ssl.SSLWantReadError:
        return outgoing.read()
    raise AssertionError("a handshake without a server")


HELLO = client_hello() if arguments.hello else b""


class Connection(asyncio.Protocol):
    open, answered = set(), set()

    def __init__(self, ended):
        self.ended = ended

    def connection_made(self, transport):
        self.open.add(self)
        if HELLO:
            transport.write(HELLO)

    def data_received(self, _):
        self.answered.add(self)

    def connection_lost(self, _):
        self.open.discard(self)
        self.answered.discard(self)
        self.ended.set_result(None)


async def keep(started):
    loop = asyncio.get_running_loop()
    while True:
        ended = loop.create_future()
        try:
            await loop.create_connection(lambda: Connection(ended), host.strip("[]"), int(port))
            started.set()
            await ended
        except OSError:
            await asyncio.sleep(0.1)
        started.set()
        if not arguments.again:
            return


async def main():
    loop = asyncio.get_running_loop()
    lines = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    tasks, starts, begin = [], [], loop.time()
    for index in range(arguments.count):
        starts.append(asyncio.Event())
        tasks.append(asyncio.create_task(keep(starts[-1])))
        if index % 50 == 49:
            due = begin + arguments.over * (index + 1) / arguments.count
            await asyncio.sleep(max(0, due - loop.time()))
    for started in starts:
        await started.wait()
    print(json.dumps({"begun": arguments.count}), flush=True)
    while await lines.readline():
        print(json.dumps({"open": len(Connection.open), "answered": len(Connection.answered)}), flush=True)


asyncio.run(main())
