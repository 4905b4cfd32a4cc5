"""A WebSocket server by `websockets`: echoes, and does what a text message asks for. Usage: websocket_server.py PORT.

ping            pings the client, and says so when the pong came
big N           a message of N bytes
close CODE      closes with the code
drop            ends the connection without a close frame
reset           resets the connection
"""

import asyncio
import http
import socket
import struct
import sys

from websockets.asyncio.server import serve
from websockets.exceptions import ConnectionClosed


async def handler(connection):
    try:
        async for message in connection:
            word, *rest = message.split() if isinstance(message, str) else ("",)
            if word == "ping":
                await (await connection.ping(b"are you there"))
                await connection.send("ponged")
            elif word == "big":
                await connection.send(b"x" * int(rest[0]))
            elif word == "close":
                await connection.close(int(rest[0]), "as you wish")
            elif word == "who":
                await connection.send(connection.remote_address[0])
            elif word in ("drop", "reset"):
                if word == "reset":
                    sock = connection.transport.get_extra_info("socket")
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                connection.transport.abort()
            else:
                await connection.send(message)
    except ConnectionClosed:
        pass
    await connection.wait_closed()
    print(connection.request.path, "closed", connection.close_code, connection.close_reason or "-", flush=True)


def check(connection, request):
    if request.path == "/forbidden":
        return connection.respond(http.HTTPStatus.FORBIDDEN, "not here\n")


def choose(connection, offered):
    return next((ours for ours in ("chat.v2", "chat.v1") if ours in offered), None)


async def main():
    options = {"process_request": check, "select_subprotocol": choose, "max_size": 64 << 20, "ping_interval": None}
    async with serve(handler, None, int(sys.argv[1]), **options) as server:
        print("listening", flush=True)
        await server.serve_forever()


asyncio.run(main())
