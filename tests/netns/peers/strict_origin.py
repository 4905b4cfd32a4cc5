"""An origin that reads requests with h11, and tells what it understood. Usage: strict_origin.py PORTS_FILE.

h11 is the HTTP/1 of uvicorn, hypercorn and httpx: a state machine that refuses what the grammar does not have. Prints one JSON line per
request, whole or not.
"""

import asyncio
import itertools
import json
import sys

import h11

CONNECTIONS = itertools.count()


def tell(**facts):
    print(json.dumps(facts), flush=True)


async def serve(reader, writer):
    port, number = writer.get_extra_info("sockname")[1], next(CONNECTIONS)
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 18)
    request, body = None, bytearray()

    def told(event, **facts):
        head = {"method": request.method.decode(), "target": request.target.decode("latin1")} if request else {}
        head["fields"] = [(n.decode(), v.decode("latin1")) for n, v in request.headers] if request else []
        tell(event=event, port=port, connection=number, body=bytes(body).hex(), **head, **facts)

    async def send(event):
        writer.write(connection.send(event) or b"")
        await writer.drain()

    try:
        while True:
            if connection.they_are_waiting_for_100_continue:
                await send(h11.InformationalResponse(status_code=100, headers=[]))
            event = connection.next_event()
            if event is h11.NEED_DATA:
                connection.receive_data(await reader.read(65536))
            elif isinstance(event, h11.Request):
                request, body = event, bytearray()
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                # A tunnel is none of this origin's services.
                status = 405 if request.method == b"CONNECT" else 200
                told("request", status=status)
                text = b"strict %b %b %d" % (request.method, request.target[:200], len(body))
                head = h11.Response(status_code=status, headers=[("Content-Length", str(len(text)))])
                await send(head)
                if request.method != b"HEAD":
                    await send(h11.Data(data=text))
                await send(h11.EndOfMessage())
                request = None
                if connection.our_state is h11.MUST_CLOSE:
                    break
                connection.start_next_cycle()
            elif isinstance(event, h11.ConnectionClosed):
                break
            elif event is h11.PAUSED:
                break
    except h11.RemoteProtocolError as error:
        told("incomplete" if request else "malformed", why=str(error))
    except OSError as error:
        if request:
            told("incomplete", why=repr(error))
    finally:
        writer.close()


async def main():
    with open(sys.argv[1], encoding="utf-8") as file:
        ports = json.load(file)
    for port in ports:
        await asyncio.start_server(serve, "0.0.0.0", port)
    tell(event="listening")
    await asyncio.Event().wait()


asyncio.run(main())
