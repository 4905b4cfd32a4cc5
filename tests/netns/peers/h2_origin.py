"""An HTTP/2 origin that reads requests with h2, and tells what it understood. Usage: h2_origin.py PORTS_FILE.

h2 is the HTTP/2 of hypercorn and httpx, and checks every header block it is sent. Prints one JSON line per request, whole or not. A path
`/slow…` is answered after a second, `/big…` with a megabyte; of `/deaf…` no body is taken beyond the first window.
"""

import asyncio
import itertools
import json
import sys

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions
import h2.settings

CONNECTIONS = itertools.count()


def tell(**facts):
    print(json.dumps(facts), flush=True)


class Server(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport, self.number = transport, next(CONNECTIONS)
        self.port = transport.get_extra_info("sockname")[1]
        config = h2.config.H2Configuration(client_side=False, header_encoding="latin1")
        self.state = h2.connection.H2Connection(config)
        self.state.local_settings = h2.settings.Settings(
            client=False, initial_values={h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS: 1000}
        )
        self.state.initiate_connection()
        self.requests, self.sending = {}, {}
        self.flush()

    def flush(self):
        if data := self.state.data_to_send():
            self.transport.write(data)

    def told(self, event, stream, **facts):
        fields, body = self.requests.pop(stream)
        pseudo = {name: value for name, value in fields if name.startswith(":")}
        others = [(name, value) for name, value in fields if not name.startswith(":")]
        others += [("host", pseudo[":authority"])] if ":authority" in pseudo else []
        tell(
            event=event,
            port=self.port,
            connection=self.number,
            method=pseudo.get(":method"),
            target=pseudo.get(":path", pseudo.get(":authority")),
            fields=others,
            body=bytes(body).hex(),
            **facts,
        )
        return pseudo.get(":method"), pseudo.get(":path", pseudo.get(":authority")), len(body)

    def data_received(self, data):
        try:
            for event in self.state.receive_data(data):
                self.on(event)
        except h2.exceptions.ProtocolError as error:
            tell(event="malformed", port=self.port, connection=self.number, why=repr(error))
            self.flush()
            self.transport.close()
        self.flush()

    def on(self, event):
        if isinstance(event, h2.events.RequestReceived):
            self.requests[event.stream_id] = (event.headers, bytearray())
        elif isinstance(event, h2.events.DataReceived):
            fields, body = self.requests[event.stream_id]
            body.extend(event.data)
            if not dict(fields).get(":path", "").startswith("/deaf"):
                self.state.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, h2.events.StreamEnded):
            method, path, count = self.told("request", event.stream_id, status=200)
            if path.startswith("/slow"):
                asyncio.get_running_loop().call_later(1, self.answer, event.stream_id, method, path, count)
            else:
                self.answer(event.stream_id, method, path, count)
        elif isinstance(event, h2.events.StreamReset):
            self.sending.pop(event.stream_id, None)
            if event.stream_id in self.requests:
                self.told("incomplete", event.stream_id, why=f"reset {event.error_code}")
        elif isinstance(event, h2.events.WindowUpdated):
            for stream in list(self.sending):
                self.pump(stream)
        elif isinstance(event, h2.events.RemoteSettingsChanged):
            for stream in list(self.sending):
                self.pump(stream)

    def answer(self, stream, method, path, count):
        text = b"h2 %b %b %d" % (method.encode("latin1"), path[:200].encode("latin1"), count)
        if path.startswith("/big"):
            text = b"x" * (1 << 20)
        try:
            self.state.send_headers(stream, [(":status", "200"), ("content-length", str(len(text)))])
        except h2.exceptions.ProtocolError:
            return  # It was reset meanwhile.
        self.sending[stream] = b"" if method == "HEAD" else text
        self.pump(stream)
        self.flush()

    def pump(self, stream):
        try:
            while True:
                rest = self.sending[stream]
                room = min(self.state.local_flow_control_window(stream), self.state.max_outbound_frame_size)
                if rest and room <= 0:
                    break
                self.sending[stream] = rest[room:]
                self.state.send_data(stream, rest[:room], end_stream=len(rest) <= room)
                if len(rest) <= room:
                    del self.sending[stream]
                    break
        except h2.exceptions.ProtocolError:
            self.sending.pop(stream, None)
        self.flush()

    def connection_lost(self, error):
        for stream in list(self.requests):
            self.told("incomplete", stream, why=repr(error))


async def main():
    with open(sys.argv[1], encoding="utf-8") as file:
        ports = json.load(file)
    loop = asyncio.get_running_loop()
    for port in ports:
        await loop.create_server(Server, "0.0.0.0", port)
    tell(event="listening")
    await asyncio.Event().wait()


asyncio.run(main())
