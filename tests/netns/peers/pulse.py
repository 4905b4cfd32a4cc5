"""An honest client: one request after the other until its standard input ends. For each line there it prints one JSON line with how they
went since the last.
Usage: pulse.py h1|h2 HOST PORT. With h2, all are streams of one connection, made again when it ends; with h1, every other request has a
connection of its own.
"""

import http.client
import json
import select
import socket
import sys
import time

import h2.config
import h2.connection
import h2.events

TIMEOUT = 5
PAUSE = 0.01


class One:
    def __init__(self, host, port):
        self.host, self.port, self.wire, self.count = host, port, None, 0

    def request(self):
        self.count += 1
        if self.wire is None or self.count % 2:
            self.drop()
            self.wire = http.client.HTTPConnection(self.host, self.port, timeout=TIMEOUT)
        self.wire.request("GET", f"/pulse-{self.count}", headers={"Host": "pulse"})
        response = self.wire.getresponse()
        body = response.read()
        if response.status != 200:
            raise OSError(f"{response.status} {body!r}")

    def drop(self):
        if self.wire:
            self.wire.close()
        self.wire = None


class Two:
    def __init__(self, host, port):
        self.host, self.port, self.wire = host, port, None

    def request(self):
        if self.wire is None:
            self.wire = socket.create_connection((self.host, self.port), TIMEOUT)
            self.state = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
            self.state.initiate_connection()
        stream = self.state.get_next_available_stream_id()
        fields = [(":method", "GET"), (":scheme", "http"), (":authority", "pulse"), (":path", f"/pulse-{stream}")]
        self.state.send_headers(stream, fields, end_stream=True)
        status = None
        while True:
            self.wire.sendall(self.state.data_to_send())
            data = self.wire.recv(65536)
            if not data:
                raise OSError("closed")
            for event in self.state.receive_data(data):
                if isinstance(event, h2.events.ResponseReceived):
                    status = dict(event.headers)[":status"]
                elif isinstance(event, h2.events.DataReceived):
                    self.state.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                elif isinstance(event, (h2.events.StreamReset, h2.events.ConnectionTerminated)):
                    raise OSError(repr(event))
                elif isinstance(event, h2.events.StreamEnded) and event.stream_id == stream:
                    if status != "200":
                        raise OSError(f"status {status}")
                    return

    def drop(self):
        if self.wire:
            self.wire.close()
        self.wire = None


client = {"h1": One, "h2": Two}[sys.argv[1]](sys.argv[2], int(sys.argv[3]))
times, failures = [], []
while True:
    start = time.monotonic()
    try:
        client.request()
    except Exception as error:
        failures.append(f"{time.time():.3f} {error!r}")
        client.drop()
    times.append(1000 * (time.monotonic() - start))
    if not select.select([sys.stdin], [], [], PAUSE)[0]:
        continue
    if not sys.stdin.readline():
        break
    times.sort()
    p50, p99 = (times[len(times) * percent // 100] for percent in (50, 99))
    told = {"count": len(times), "failed": len(failures), "failures": failures[:5], "p50_ms": p50, "p99_ms": p99, "max_ms": times[-1]}
    print(json.dumps(told), flush=True)
    times, failures = [], []
