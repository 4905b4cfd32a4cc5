"""The server side of HBONE, of Python's ssl and h2: mutual TLS, CONNECT, a connection to the application for each.

Usage: hbone_server.py PORT --chain F --key F --roots F [--expect ID]... Prints one JSON line per event: `handshake`, `failed`, `connect`,
`ended`, `reset`, `ping`, `closed`. Misbehaves on demand: `--status 401` answers every CONNECT so, `--alpn ""` offers none, `--tls12`,
`--deaf` reads nothing after the preface of a connection, `--truncate` ends the connection without a word after the first bytes of a
stream, `--reset` resets the stream then.
"""

import argparse
import asyncio
import contextlib
import json
import socket
import struct

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions
import h2.settings
import mtls

parser = argparse.ArgumentParser()
parser.add_argument("port", type=int)
mtls.options(parser, "h2")
parser.add_argument("--to", help="connect there, whatever the authority says (host)")
parser.add_argument("--status", default="200")
parser.add_argument("--deaf", action="store_true")
parser.add_argument("--truncate", action="store_true")
parser.add_argument("--reset", action="store_true")
arguments = parser.parse_args()

STREAMS_MAX = 100
WINDOW = 1 << 20


def tell(event, **facts):
    print(json.dumps({"event": event, **facts}), flush=True)


class Connection:
    def __init__(self, reader, writer, number):
        self.reader, self.writer, self.number = reader, writer, number
        self.state = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding="latin1"))
        codes = h2.settings.SettingCodes
        self.state.local_settings = h2.settings.Settings(
            client=False,
            initial_values={codes.MAX_CONCURRENT_STREAMS: STREAMS_MAX, codes.INITIAL_WINDOW_SIZE: WINDOW, codes.ENABLE_CONNECT_PROTOCOL: 1},
        )
        # stream → (its bytes to the application, a task that carries them both ways)
        self.streams, self.room = {}, asyncio.Event()

    async def flush(self):
        if data := self.state.data_to_send():
            self.writer.write(data)
            await self.writer.drain()

    async def serve(self):
        self.state.initiate_connection()
        self.state.increment_flow_control_window(16 << 20)
        await self.flush()
        if arguments.deaf:
            await asyncio.Event().wait()
        try:
            while data := await self.reader.read(1 << 16):
                for event in self.state.receive_data(data):
                    await self.on(event)
                await self.flush()
        finally:
            for inbox, task in self.streams.values():
                task.cancel()

    async def on(self, event):
        if isinstance(event, h2.events.RequestReceived):
            inbox = asyncio.Queue()
            task = asyncio.create_task(self.tunnel(event.stream_id, event.headers, inbox))
            self.streams[event.stream_id] = (inbox, task)
        elif isinstance(event, h2.events.DataReceived):
            if event.stream_id in self.streams:
                self.streams[event.stream_id][0].put_nowait((event.data, event.flow_controlled_length))
        elif isinstance(event, h2.events.StreamEnded):
            if event.stream_id in self.streams:
                self.streams[event.stream_id][0].put_nowait(("end", 0))
        elif isinstance(event, h2.events.StreamReset):
            tell("reset", connection=self.number, stream=event.stream_id, code=int(event.error_code))
            if event.stream_id in self.streams:
                self.streams[event.stream_id][0].put_nowait(("reset", 0))
            self.room.set()
        elif isinstance(event, (h2.events.WindowUpdated, h2.events.RemoteSettingsChanged)):
            self.room.set()
        elif isinstance(event, h2.events.PingReceived):
            tell("ping", connection=self.number)

    async def tunnel(self, stream, fields, inbox):
        fields = dict(fields)
        tell("connect", connection=self.number, stream=stream, fields=fields)
        try:
            if arguments.status != "200" or fields.get(":method") != "CONNECT":
                status = arguments.status if arguments.status != "200" else "400"
                self.state.send_headers(stream, [(":status", status)], end_stream=True)
                return await self.flush()
            host, port = fields[":authority"].rsplit(":", 1)
            try:
                reader, writer = await asyncio.open_connection(arguments.to or host.strip("[]"), int(port))
            except OSError as error:
                tell("unreachable", authority=fields[":authority"], why=str(error))
                self.state.send_headers(stream, [(":status", "503")], end_stream=True)
                return await self.flush()
            self.state.send_headers(stream, [(":status", "200")])
            await self.flush()
            down = asyncio.create_task(self.to_application(stream, inbox, writer))
            try:
                await asyncio.gather(down, self.from_application(stream, reader))
                tell("ended", connection=self.number, stream=stream)
            except (OSError, h2.exceptions.StreamClosedError):  # Of write_eof, on a socket just reset, it is ENOTCONN.
                tell("aborted", connection=self.number, stream=stream)
                self.reset_stream(stream)
                await self.flush()
                abort(writer)
            finally:
                down.cancel()
                writer.close()
            await self.flush()
        except (OSError, h2.exceptions.ProtocolError) as error:
            tell("lost", connection=self.number, stream=stream, why=repr(error))
        finally:
            self.streams.pop(stream, None)

    def reset_stream(self, stream):
        try:
            self.state.reset_stream(stream, h2.errors.ErrorCodes.CONNECT_ERROR)
        except h2.exceptions.ProtocolError:
            pass  # The peer was first.

    async def to_application(self, stream, inbox, writer):
        while True:
            data, length = await inbox.get()
            if data == "reset":
                raise ConnectionResetError
            if data == "end":
                return writer.write_eof()
            if arguments.truncate:
                # Not even TLS is told.
                return self.writer.transport.abort()
            if arguments.reset:
                raise ConnectionResetError
            writer.write(data)
            await writer.drain()
            self.state.acknowledge_received_data(length, stream)
            await self.flush()

    async def from_application(self, stream, reader):
        while data := await reader.read(1 << 16):
            while data:
                size = min(self.state.local_flow_control_window(stream), self.state.max_outbound_frame_size)
                if size <= 0:
                    self.room.clear()
                    await self.room.wait()
                    continue
                self.state.send_data(stream, data[:size])
                data = data[size:]
                await self.flush()
        self.state.end_stream(stream)
        await self.flush()


def abort(writer):
    """Ends a connection with a reset."""
    with contextlib.suppress(OSError):  # It may be gone already.
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def accept(reader, writer):
    accept.count = getattr(accept, "count", 0) + 1
    number, session = accept.count, writer.get_extra_info("ssl_object")
    client = writer.get_extra_info("peername")[0]
    try:
        peer = mtls.identity(session.getpeercert())
        if arguments.expect and peer not in arguments.expect:
            raise ValueError(f"{peer} is none of {arguments.expect}")
        tell("handshake", connection=number, peer=peer, alpn=session.selected_alpn_protocol(), version=session.version(), client=client)
        await Connection(reader, writer, number).serve()
        tell("closed", connection=number)
    except (OSError, ValueError, h2.exceptions.ProtocolError) as error:
        tell("failed", connection=number, why=str(error))
    finally:
        writer.transport.abort()


async def main():
    loop = asyncio.get_running_loop()

    def failed(loop, context):
        tell("failed", why=f"{context.get('message')}: {context.get('exception')!r}")

    loop.set_exception_handler(failed)
    for host, family in (("0.0.0.0", socket.AF_INET), ("::", socket.AF_INET6)):
        await asyncio.start_server(accept, host, arguments.port, family=family, ssl=mtls.context(True, arguments), backlog=1024)
    await asyncio.Event().wait()


asyncio.run(main())
