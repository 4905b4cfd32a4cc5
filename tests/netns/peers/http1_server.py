"""An HTTP/1 server on h11: the path decides what it does. Usage: http1_server.py PORT.

/echo           what it received, as JSON: version, method, length and sha256 of the body, header fields, trailers
/hints          103 twice, then 200
/trailers       chunked, with trailers
/close          a body that ends with the connection
/refuse         403 at once, without reading the body
/cut            half of the promised body, then a reset
/status/CODE/N  a response with this status, and with N as its grpc-status
"""

import hashlib
import json
import socket
import socketserver
import struct
import sys

import h11


class Handler(socketserver.BaseRequestHandler):
    def handle(self):
        self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.h11 = h11.Connection(h11.SERVER)
        while True:
            try:
                request = self.next()
                if type(request) is not h11.Request or not self.answer(request):
                    return
                if self.h11.our_state is h11.MUST_CLOSE or self.h11.their_state is h11.MUST_CLOSE:
                    return
                self.h11.start_next_cycle()
            except (ConnectionError, h11.ProtocolError) as error:
                print("error", type(error).__name__, error, flush=True)
                return

    def next(self):
        while True:
            event = self.h11.next_event()
            if event is not h11.NEED_DATA:
                return event
            self.h11.receive_data(self.request.recv(65536))

    def send(self, *events):
        for event in events:
            self.request.sendall(self.h11.send(event) or b"")

    def answer(self, request):
        path = request.target.decode().split("?")[0]
        if path == "/refuse":
            body = b"no, thank you\n"
            self.send(
                h11.Response(status_code=403, headers=[("Content-Length", str(len(body))), ("Connection", "close")]),
                h11.Data(data=body),
                h11.EndOfMessage(),
            )
            return self.read_to_end()
        if self.h11.they_are_waiting_for_100_continue:
            self.send(h11.InformationalResponse(status_code=100, headers=[]))
        length, digest, trailers = 0, hashlib.sha256(), []
        while type(event := self.next()) is h11.Data:
            length += len(event.data)
            digest.update(event.data)
        if type(event) is h11.EndOfMessage:
            trailers = event.headers
        if path == "/hints":
            for style in ("/a.css", "/b.css"):
                link = [("Link", f"<{style}>; rel=preload")]
                self.send(h11.InformationalResponse(status_code=103, headers=link))
            return self.reply(b"hinted\n")
        if path == "/trailers":
            self.send(h11.Response(status_code=200, headers=[("Trailer", "X-Sum"), ("Transfer-Encoding", "chunked")]))
            for part in (b"one ", b"two ", b"three\n"):
                self.send(h11.Data(data=part))
            self.send(h11.EndOfMessage(headers=[("X-Sum", "6")]))
            return True
        if path == "/close":
            self.send(h11.Response(status_code=200, headers=[("Connection", "close")]))
            self.send(h11.Data(data=b"x" * 100_000), h11.EndOfMessage())
            return False
        if path.startswith("/status/"):
            _, _, code, grpc_status = path.split("/")
            headers = [("Content-Length", "0"), ("grpc-status", grpc_status)]
            self.send(h11.Response(status_code=int(code), headers=headers), h11.EndOfMessage())
            return True
        if path == "/cut":
            self.send(h11.Response(status_code=200, headers=[("Content-Length", "1000")]), h11.Data(data=b"x" * 500))
            self.request.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return False
        headers = [(name.decode().lower(), value.decode()) for name, value in request.headers]
        told = {
            "version": request.http_version.decode(),
            "method": request.method.decode(),
            "length": length,
            "sha256": digest.hexdigest(),
            "headers": dict(headers),
            "trailers": {name.decode().lower(): value.decode() for name, value in trailers},
        }
        return self.reply(json.dumps(told).encode() + b"\n")

    def reply(self, body):
        self.send(
            h11.Response(status_code=200, headers=[("Content-Length", str(len(body)))]),
            h11.Data(data=body),
            h11.EndOfMessage(),
        )
        return True

    def read_to_end(self):
        """What is still on its way is taken, or closing would take our answer away with a reset."""
        self.request.shutdown(socket.SHUT_WR)
        while self.request.recv(65536):
            pass
        return False


class Server(socketserver.ThreadingTCPServer):
    address_family = socket.AF_INET6
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 128


server = Server(("::", int(sys.argv[1])), Handler)
print("listening", flush=True)
server.serve_forever()
