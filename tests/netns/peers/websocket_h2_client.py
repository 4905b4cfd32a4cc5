"""WebSocket over HTTP/2 (RFC 8441) on h2 and wsproto, against asgi_app.py. Usage: websocket_h2_client.py HOST:PORT [own address
[version the server is called with]].

All streams share one connection, beside ordinary requests.
"""

import json
import os
import socket
import sys
import time

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.settings
from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Message, Ping, Pong, TextMessage

HOST, PORT = sys.argv[1].rsplit(":", 1)
VERSION = sys.argv[3] if len(sys.argv) > 3 else "2"
HOST = HOST.strip("[]")


class Client:
    def __init__(self):
        self.socket = socket.create_connection((HOST, int(PORT)), timeout=10)
        # No Nagle, as any HTTP/2 client: small frames must not wait for each other.
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        self.h2.initiate_connection()
        self.events = []
        self.streams = {}
        self.flush()
        # RFC 8441 §3: extended CONNECT may be used once the server said so.
        self.wait(lambda e: isinstance(e, h2.events.RemoteSettingsChanged))
        assert self.h2.remote_settings.enable_connect_protocol == 1, "no SETTINGS_ENABLE_CONNECT_PROTOCOL"

    def flush(self):
        self.socket.sendall(self.h2.data_to_send())

    def read(self):
        data = self.socket.recv(1 << 16)
        events = self.h2.receive_data(data) if data else [None]
        for event in events:
            if isinstance(event, h2.events.DataReceived):
                self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                # What ends a stream may be an empty frame.
                if event.data and (ws := self.streams.get(event.stream_id)):
                    ws.ws.receive_data(event.data)
                    ws.received.extend(ws.ws.events())
        self.events += events
        self.flush()
        assert data, "the connection ended"

    def wait(self, wanted):
        while True:
            for n, event in enumerate(self.events):
                if wanted(event):
                    return self.events.pop(n)
            self.read()

    def request(self, method, path, extra=()):
        stream = self.h2.get_next_available_stream_id()
        scheme = () if (":protocol", "websocket") in extra else ((":scheme", "http"),)
        fields = [(":method", method), *scheme, *extra, (":path", path), (":authority", "peer")]
        fields.sort(key=lambda field: not field[0].startswith(":"))
        self.h2.send_headers(stream, fields, end_stream=method == "GET")
        self.flush()
        return stream

    def status(self, stream):
        answer = self.wait(lambda e: isinstance(e, h2.events.ResponseReceived) and e.stream_id == stream)
        return int(dict(answer.headers)[":status"]), dict(answer.headers)


class WebSocket:
    def __init__(self, client, path, subprotocols=()):
        self.client = client
        fields = [(":protocol", "websocket"), (":scheme", "http"), ("sec-websocket-version", "13")]
        if subprotocols:
            fields.append(("sec-websocket-protocol", ", ".join(subprotocols)))
        self.stream = client.request("CONNECT", path, fields)
        self.status, self.headers = client.status(self.stream)
        self.ws = Connection(ConnectionType.CLIENT)
        self.received = []
        client.streams[self.stream] = self

    def send(self, event):
        data = memoryview(self.ws.send(event))
        while data:
            window = self.client.h2.local_flow_control_window(self.stream)
            if window <= 0:
                self.client.read()
                continue
            part = min(window, len(data), self.client.h2.max_outbound_frame_size)
            self.client.h2.send_data(self.stream, bytes(data[:part]))
            self.client.flush()
            data = data[part:]

    def next(self):
        while not self.received:
            self.client.read()
        return self.received.pop(0)

    def message(self):
        parts = []
        while True:
            event = self.next()
            assert isinstance(event, Message), event
            parts.append(event.data)
            if event.message_finished:
                return b"".join(parts) if isinstance(parts[0], (bytes, bytearray)) else "".join(parts)

    def ends(self):
        ends = (h2.events.StreamEnded, h2.events.StreamReset)
        self.client.wait(lambda e: isinstance(e, ends) and e.stream_id == self.stream)


client = Client()

# Beside ordinary requests, of which one is told its version.
plain = client.request("GET", "/echo")
assert client.status(plain)[0] == 200
body = client.wait(lambda e: isinstance(e, h2.events.DataReceived) and e.stream_id == plain).data
assert json.loads(body)["version"] == VERSION, body

one, two = WebSocket(client, "/one", ["chat.v1", "chat.v2"]), WebSocket(client, "/two")
assert (one.status, two.status) == (200, 200), (one.headers, two.headers)
assert one.headers["sec-websocket-protocol"] == "chat.v2", one.headers
one.send(TextMessage(data="who"))
who = one.message()
assert who.startswith(f"HTTP/{VERSION} ") and (len(sys.argv) < 3 or sys.argv[2] in who), who
for n in range(100):
    one.send(TextMessage(data=f"one {n}"))
    two.send(TextMessage(data=f"two {n}"))
for n in range(100):
    assert two.message() == f"two {n}"
    assert one.message() == f"one {n}"

# More than any window holds, in one message.
data = os.urandom(2 << 20)
two.send(BytesMessage(data=data))
assert two.message() == data

one.send(Ping(payload=b"are you there"))
event = one.next()
assert isinstance(event, Pong) and bytes(event.payload) == b"are you there", event

# Close codes: the server's, then ours.
one.send(TextMessage(data="close 4002"))
event = one.next()
assert isinstance(event, CloseConnection) and (event.code, event.reason) == (4002, "as you wish"), event
one.send(event.response())
one.ends()
two.send(CloseConnection(code=4001, reason="bye"))
event = two.next()
assert isinstance(event, CloseConnection) and event.code == 4001, event
# The closing handshake is done; hypercorn leaves the stream open, so we end it.
client.h2.reset_stream(two.stream, h2.errors.ErrorCodes.CANCEL)

# One that is refused, while others live.
forbidden = WebSocket(client, "/forbidden")
assert forbidden.status == 403, forbidden.headers

# Abrupt ends: ours is felt by the application ...
vanish, other = WebSocket(client, "/vanish"), WebSocket(client, "/other")
vanish.send(TextMessage(data="here"))
assert vanish.message() == "here"
client.h2.reset_stream(vanish.stream, h2.errors.ErrorCodes.CANCEL)
client.flush()
other.send(TextMessage(data="still here"))
assert other.message() == "still here"
print("vanished", flush=True)
# ... and the application's by us, at once and as no clean end.
other.send(TextMessage(data="die"))
start = time.monotonic()
ends = (h2.events.StreamReset, h2.events.StreamEnded)
end = client.wait(lambda e: isinstance(e, ends) and e.stream_id == other.stream)
# Of a server of HTTP/1 nothing is left but the end of its connection.
assert isinstance(end, h2.events.StreamReset) or VERSION == "1.1", end
assert time.monotonic() - start < 2, "late"
print("all is well", flush=True)
