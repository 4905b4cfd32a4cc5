"""An HTTP/1 client on h11, for what curl's command line cannot do. Usage: http1_client.py HOST:PORT [INTERIM].

Sends requests with trailers, pipelined, over one connection, to http1_server.py, and checks the answers. INTERIM: how many of the server's two interim
responses arrive (Envoy passes on the first).
"""

import hashlib
import json
import socket
import sys

import h11

host, port = sys.argv[1].rsplit(":", 1)
host = host.strip("[]")
stream = socket.create_connection((host, int(port)), timeout=10)
client = h11.Connection(h11.CLIENT)


def next_event():
    while True:
        event = client.next_event()
        if event is not h11.NEED_DATA:
            return event
        client.receive_data(stream.recv(65536))


def response():
    interim, body = [], b""
    while type(head := next_event()) is h11.InformationalResponse:
        interim.append(head.status_code)
    assert type(head) is h11.Response, head
    while type(event := next_event()) is h11.Data:
        body += event.data
    return interim, head, body, event.headers


def send(*events):
    for event in events:
        stream.sendall(client.send(event) or b"")


# Trailers of a request.
send(
    h11.Request(method="POST", target="/echo", headers=[("Host", "peer"), ("Transfer-Encoding", "chunked")]),
    h11.Data(data=b"first "),
    h11.Data(data=b"second"),
    h11.EndOfMessage(headers=[("X-Digest", "abc")]),
)
_, head, body, _ = response()
told = json.loads(body)
assert told["length"] == 12 and told["sha256"] == hashlib.sha256(b"first second").hexdigest(), told
assert told["trailers"] == {"x-digest": "abc"}, told
client.start_next_cycle()

# The body waits for 100.
send(
    h11.Request(
        method="PUT",
        target="/echo",
        headers=[("Host", "peer"), ("Expect", "100-continue"), ("Content-Length", "4")],
    )
)
event = next_event()
assert type(event) is h11.InformationalResponse and event.status_code == 100, event
send(h11.Data(data=b"body"), h11.EndOfMessage())
_, head, body, _ = response()
assert json.loads(body)["length"] == 4, body
client.start_next_cycle()

# Interim responses, and trailers of a response.
send(h11.Request(method="GET", target="/hints", headers=[("Host", "peer")]), h11.EndOfMessage())
interim, head, body, _ = response()
wanted = [103] * int(sys.argv[2] if len(sys.argv) > 2 else 2)
assert (interim, body) == (wanted, b"hinted\n"), (interim, body)
client.start_next_cycle()
send(h11.Request(method="GET", target="/trailers", headers=[("Host", "peer"), ("TE", "trailers")]), h11.EndOfMessage())
_, head, body, trailers = response()
assert body == b"one two three\n" and (b"x-sum", b"6") in list(trailers), (body, trailers)
stream.close()

# Pipelined: one write, answers in order. A fresh parser for each answer takes on what the last one left.
stream = socket.create_connection((host, int(port)), timeout=10)
stream.sendall(b"".join(b"GET /echo?%d HTTP/1.1\r\nHost: peer\r\nX-N: %d\r\n\r\n" % (n, n) for n in range(50)))
left = b""
for n in range(50):
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method="GET", target="/", headers=[("Host", "peer")]))
    client.send(h11.EndOfMessage())
    if left:
        client.receive_data(left)
    _, head, body, _ = response()
    assert json.loads(body)["headers"]["x-n"] == str(n), (n, body)
    left = client.trailing_data[0]
print("all is well", flush=True)
