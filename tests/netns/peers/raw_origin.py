"""An origin that answers with the very bytes it is told. Usage: raw_origin.py SCRIPTS_FILE.

SCRIPTS_FILE is JSON: port → {"greet": hex, "replies": [[action…]…]}: what its first connection is greeted with, and what its first, second…
request is answered with. Actions: ["send", hex], ["sleep", seconds], ["close"], ["reset"]; ["early"], first of a reply, answers before the
body is read. Every other request gets an honest 200. Prints one JSON line per request, whole or not.
"""

import asyncio
import itertools
import json
import socket
import struct
import sys

CONNECTIONS = itertools.count()


def tell(**facts):
    print(json.dumps(facts), flush=True)


class Gone(Exception):
    pass


class Origin:
    def __init__(self, script):
        self.greet = bytes.fromhex(script.get("greet", ""))
        self.replies = iter(script["replies"])

    async def serve(self, reader, writer):
        port, number = writer.get_extra_info("sockname")[1], next(CONNECTIONS)
        greet, self.greet = self.greet, b""
        writer.write(greet)
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                method, target, _ = head.split(b"\r\n")[0].decode("latin1").split(" ")
                fields = [line.decode("latin1").split(":", 1) for line in head.split(b"\r\n")[1:-2]]
                fields = [(name.lower(), value.strip()) for name, value in fields]
                facts = {"port": port, "connection": number, "method": method, "target": target, "fields": fields}
                reply = next(self.replies, None)
                if reply and reply[0] == ["early"]:
                    await self.act(writer, reply[1:])
                try:
                    body = await self.body(reader, dict(fields))
                except (asyncio.IncompleteReadError, OSError) as error:
                    tell(event="incomplete", body="", why=repr(error), **facts)
                    break
                tell(event="request", body=body.hex(), status=200, **facts)
                if reply is None:
                    text = f"raw {method} {target} {len(body)}".encode()
                    length = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(text)
                    writer.write(length + (b"" if method == "HEAD" else text))
                    await writer.drain()
                elif not reply or reply[0] != ["early"]:
                    await self.act(writer, reply)
        except (asyncio.IncompleteReadError, OSError, Gone):
            pass
        finally:
            writer.close()

    async def body(self, reader, fields):
        if fields.get("transfer-encoding") == "chunked":
            body = b""
            while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
                body += await reader.readexactly(size)
                await reader.readexactly(2)
            while await reader.readuntil(b"\r\n") != b"\r\n":
                pass
            return body
        return await reader.readexactly(int(fields.get("content-length", 0)))

    async def act(self, writer, actions):
        for action, *words in actions:
            if action == "send":
                writer.write(bytes.fromhex(words[0]))
                await writer.drain()
            elif action == "sleep":
                await asyncio.sleep(words[0])
            elif action == "close":
                writer.close()
                raise Gone
            elif action == "reset":
                linger = struct.pack("ii", 1, 0)
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                writer.transport.abort()
                raise Gone


async def main():
    with open(sys.argv[1], encoding="utf-8") as file:
        scripts = json.load(file)
    for port, script in scripts.items():
        await asyncio.start_server(Origin(script).serve, "0.0.0.0", int(port), limit=1 << 20)
    tell(event="listening")
    await asyncio.Event().wait()


asyncio.run(main())
