"""A client of mutual TLS and HTTP/2, of Python's ssl and h2: HBONE's, the mesh's own transport's, and an attacker's.

Usage: mtls_client.py HOST:PORT --roots F --chain F --key F [what to do], and prints one JSON line:
  handshake  `ok`, or what OpenSSL says (a server that refuses a certificate of TLS 1.3 is heard only when it is read)
  peer       the SPIFFE id of the server's certificate
  streams    of each stream: status, fields, body, end (`eof`, `reset 5`, `closed`, `none`)
  end        how the connection ended, if it did: `close_notify`, `truncated`, `reset`, or an alert's text

By default one stream: CONNECT AUTHORITY, `--send` it, end it, read it to its end. `--path` makes it a GET instead.
"""

import argparse
import json
import select
import socket
import ssl
import struct
import sys
import time

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions
import h2.settings
import mtls

parser = argparse.ArgumentParser()
parser.add_argument("to")
mtls.options(parser, "h2")
parser.add_argument("--authority", help="of CONNECT; as it is, good or bad")
parser.add_argument("--method", default="CONNECT")
parser.add_argument("--path", help="with it and a scheme: a request; else a tunnel")
parser.add_argument("--field", action="append", default=[], help="name=value, in every request")
parser.add_argument("--send", default="")
parser.add_argument("--bytes", type=int, default=0, help="send so many, and want them back")
parser.add_argument("--streams", type=int, default=1, help="so many at once, `--send` with the number of each")
parser.add_argument("--one-by-one", action="store_true", help="each stream after the one before it")
parser.add_argument("--open-end", action="store_true", help="do not end the streams")
parser.add_argument("--reset-after", type=int, help="reset the stream when so many bytes have come")
parser.add_argument("--ping", action="store_true", help="before the streams, and while they wait")
parser.add_argument("--stall", action="store_true", help="never open the window again; when it is full, ping, and that is all")
parser.add_argument("--truncate", action="store_true", help="when something has come: end TCP, tell TLS nothing")
parser.add_argument("--silent", action="store_true", help="after the handshake: say nothing and listen")
parser.add_argument("--raw", help="instead of HTTP/2, these bytes (text) in TLS, and what comes is `raw`")
parser.add_argument("--raw-back", type=int, default=0, help="end in order when so many bytes have come back")
parser.add_argument("--server-name", help="in the ClientHello (SNI); the certificate need not have it")
parser.add_argument("--plain", action="store_true", help="no TLS: HTTP/2 at once")
parser.add_argument("--slow-ms", type=float, default=0, help="pause before every byte of the ClientHello")
parser.add_argument("--hello-only", type=int, help="send so many bytes of the ClientHello, then only listen")
parser.add_argument("--times", type=int, default=1, help="so many connections, one after the other; `handshakes` counts them")
parser.add_argument("--wait-line", action="store_true", help="print {connected}, and go on after a line of standard input")
parser.add_argument("--timeout", type=float, default=10)
arguments = parser.parse_args()

host, port = arguments.to.rsplit(":", 1)
# Of a stream, for what the server sends.
WINDOW = 1 << 20
TARGET = (host.strip("[]"), int(port))


class Ended(Exception):
    """The connection did, in this way."""


class Plain:
    def __init__(self, tcp):
        self.tcp = tcp

    def send(self, data):
        self.tcp.sendall(data)

    def receive(self):
        try:
            data = self.tcp.recv(1 << 16)
        except ConnectionResetError:
            raise Ended("reset") from None
        except TimeoutError:
            raise Ended("timeout") from None
        if not data:
            raise Ended("eof")
        return data


class Tls:
    """Over memory, so that every byte on the wire is ours to send or not."""

    def __init__(self, tcp):
        self.tcp, self.incoming, self.outgoing = tcp, ssl.MemoryBIO(), ssl.MemoryBIO()
        context, name = mtls.context(False, arguments), arguments.server_name
        self.session = context.wrap_bio(self.incoming, self.outgoing, server_hostname=name)
        self.is_first = True

    def flush(self):
        data = self.outgoing.read()
        if self.is_first and data:
            self.is_first = False
            if arguments.hello_only is not None:
                self.tcp.sendall(data[: arguments.hello_only])
                self.fill()
                raise Ended("answered half a ClientHello")
            if arguments.slow_ms:
                for at in range(len(data)):
                    time.sleep(arguments.slow_ms / 1000)
                    # One that is closed in the meantime is not waited for.
                    if select.select([self.tcp], [], [], 0)[0]:
                        self.fill()
                    self.tcp.sendall(data[at : at + 1])
                return
        if data:
            self.tcp.sendall(data)

    def fill(self):
        try:
            data = self.tcp.recv(1 << 16)
        except (ConnectionResetError, BrokenPipeError):
            raise Ended("reset") from None
        except TimeoutError:
            raise Ended("timeout") from None
        if not data:
            raise Ended("truncated")
        self.incoming.write(data)

    def handshake(self):
        while True:
            try:
                self.session.do_handshake()
                return self.flush()
            except ssl.SSLWantReadError:
                self.flush()
                self.fill()
            except ssl.SSLError:
                self.flush()
                raise

    def send(self, data):
        try:
            while data:
                data = data[self.session.write(data) :]
                self.flush()
        except (ConnectionResetError, BrokenPipeError):
            raise Ended("reset") from None

    def receive(self):
        while True:
            try:
                data = self.session.read(1 << 16)
                if not data:
                    raise Ended("close_notify")
                return data
            except ssl.SSLWantReadError:
                self.flush()
                self.fill()
            except ssl.SSLZeroReturnError:
                raise Ended("close_notify") from None
            except ssl.SSLError as error:
                raise Ended(error.reason or str(error)) from None


class Exchange:
    """Some streams of one connection."""

    def __init__(self, wire):
        self.wire, self.streams, self.pongs = wire, {}, 0
        self.state = h2.connection.H2Connection(
            h2.config.H2Configuration(
                client_side=True,
                header_encoding="latin1",
                validate_outbound_headers=False,
                normalize_outbound_headers=False,
            )
        )
        self.state.initiate_connection()
        self.state.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: WINDOW})
        self.state.increment_flow_control_window(16 << 20)

    def flush(self):
        if data := self.state.data_to_send():
            self.wire.send(data)

    def open(self, index):
        stream = self.state.get_next_available_stream_id()
        fields = [(":method", arguments.method if arguments.path is None or arguments.method != "CONNECT" else "GET")]
        if arguments.path is not None:
            fields += [(":scheme", "http"), (":path", arguments.path)]
        if arguments.authority is not None:
            fields.append((":authority", arguments.authority))
        fields += [tuple(field.split("=", 1)) for field in arguments.field]
        body = arguments.send.encode().replace(b"{n}", b"%d" % index) or bytes(arguments.bytes)
        is_bodyless = arguments.path is not None and not body
        self.state.send_headers(stream, fields, end_stream=is_bodyless)
        self.streams[stream] = {
            "status": None,
            "fields": {},
            "body": bytearray(),
            "end": "none",
            "left": b"" if is_bodyless else body,
            "is_ended": is_bodyless,
        }

    def pump(self):
        for stream, facts in self.streams.items():
            # A tunnel speaks when it is open.
            if facts["is_ended"] or facts["end"] != "none" or (arguments.path is None and facts["status"] != "200"):
                continue
            try:
                while facts["left"]:
                    size = min(self.state.local_flow_control_window(stream), self.state.max_outbound_frame_size)
                    if size <= 0:
                        break
                    self.state.send_data(stream, facts["left"][:size])
                    facts["left"] = facts["left"][size:]
                if not facts["left"] and not arguments.open_end and arguments.reset_after is None:
                    self.state.end_stream(stream)
                    facts["is_ended"] = True
            except h2.exceptions.StreamClosedError:
                pass
        self.flush()

    def on(self, event):
        facts = self.streams.get(getattr(event, "stream_id", None))
        if isinstance(event, h2.events.PingAckReceived):
            self.pongs += 1
        elif isinstance(event, h2.events.ConnectionTerminated):
            self.goaway = int(event.error_code)
        elif facts is None:
            return
        elif isinstance(event, h2.events.ResponseReceived):
            fields = dict(event.headers)
            facts["status"] = fields.pop(":status")
            facts["fields"] = fields
        elif isinstance(event, h2.events.DataReceived):
            facts["body"].extend(event.data)
            if not arguments.stall:
                self.state.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            elif len(facts["body"]) == WINDOW:
                self.state.ping(b"areyouok")
            if arguments.truncate:
                self.flush()
                self.wire.tcp.shutdown(socket.SHUT_WR)
                self.wire.tcp.close()
                raise Ended("cut by ourselves")
            if arguments.reset_after is not None and len(facts["body"]) >= arguments.reset_after:
                self.state.reset_stream(event.stream_id, h2.errors.ErrorCodes.CONNECT_ERROR)
                facts["end"] = "reset by ourselves"
        elif isinstance(event, h2.events.StreamEnded):
            if facts["end"] == "none":
                facts["end"] = "eof"
        elif isinstance(event, h2.events.StreamReset):
            facts["end"] = f"reset {int(event.error_code)}"

    def is_done(self):
        if arguments.stall:
            return self.pongs > 0
        over = all(facts["end"] != "none" for facts in self.streams.values())
        if arguments.open_end and arguments.send:
            wanted = lambda n: len(arguments.send.replace("{n}", str(n)).encode())
            over = all(facts["end"] != "none" or len(facts["body"]) >= wanted(n) for n, facts in enumerate(self.streams.values()))
        return over and (not arguments.ping or self.pongs > 0)

    def turn(self):
        for event in self.state.receive_data(self.wire.receive()):
            self.on(event)
        self.flush()
        self.pump()

    def run(self):
        if arguments.ping:
            self.state.ping(b"12345678")
        if arguments.one_by_one:
            for index in range(arguments.streams):
                self.open(index)
                self.pump()
                while not self.is_done():
                    self.turn()
            return
        for index in range(arguments.streams):
            self.open(index)
        self.pump()
        while not self.is_done():
            self.turn()
        if arguments.reset_after is not None:
            # Until the server has heard of it: it answers a PING after that.
            self.state.ping(b"thereyou")
            self.flush()
            pongs = self.pongs
            while self.pongs == pongs:
                self.turn()

    def told(self):
        def of(facts):
            body = bytes(facts["body"])
            is_echo = body == bytes(arguments.bytes) if arguments.bytes else None
            return {
                "status": facts["status"],
                "fields": facts["fields"],
                "body": body[:4096].decode("latin1"),
                "length": len(body),
                "is_echo": is_echo,
                "end": facts["end"],
            }

        return [of(facts) for facts in self.streams.values()]


def connect():
    result = {"handshake": None, "peer": None, "streams": [], "end": None}
    exchange, started = None, time.monotonic()
    try:
        tcp = socket.create_connection(TARGET, timeout=arguments.timeout)
    except OSError as error:
        return {**result, "handshake": f"connect: {error.__class__.__name__}", "end": "reset"}
    tcp.settimeout(arguments.timeout)
    tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        wire = Plain(tcp)
        if not arguments.plain:
            wire = Tls(tcp)
            try:
                wire.handshake()
            except ssl.SSLError as error:
                result["handshake"] = error.reason or str(error)
                return result
            except Ended as ended:
                result["handshake"] = str(ended)
                raise
            except OSError as error:
                result["handshake"] = error.__class__.__name__
                raise Ended("reset") from None
            result["handshake"] = "ok"
            result["version"], result["alpn"] = wire.session.version(), wire.session.selected_alpn_protocol()
            result["peer"] = mtls.identity(wire.session.getpeercert())
            if arguments.expect and result["peer"] not in arguments.expect:
                result["handshake"] = f"{result['peer']} is none of {arguments.expect}"
                return result
        if arguments.wait_line:
            print(json.dumps({"event": "connected", "peer": result["peer"]}), flush=True)
            sys.stdin.readline()
        if arguments.silent or arguments.raw is not None:
            wire.send((arguments.raw or "").encode())
            heard = b""
            try:
                while not arguments.raw_back or len(heard) < arguments.raw_back:
                    heard += wire.receive()
                result["end"] = "ours"
                return result
            finally:
                result["raw"] = heard.decode("latin1")
        exchange = Exchange(wire)
        exchange.run()
        result["pongs"] = exchange.pongs
        exchange.state.close_connection()
        exchange.flush()
        result["end"] = "ours"
    except Ended as ended:
        result["end"] = str(ended)
    except OSError as error:
        result["end"] = error.__class__.__name__
    except h2.exceptions.ProtocolError as error:
        result["end"] = f"protocol: {error!r}"
    finally:
        tcp.close()
        result["seconds"] = round(time.monotonic() - started, 3)
        if exchange is not None:
            result["streams"] = exchange.told()
            result["goaway"] = getattr(exchange, "goaway", None)
    return result


results = [connect() for _ in range(arguments.times)]
last = results[-1]
last["handshakes"] = sum(1 for result in results if result["handshake"] == "ok")
last["answered"] = sum(1 for result in results if any(stream["status"] for stream in result["streams"]))
print(json.dumps(last), flush=True)
