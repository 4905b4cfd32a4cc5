"""A database-like service that speaks first, as MySQL and SMTP do, and its client.

ledger.py serve PORT         greets every client with the address it sees, then answers PUT, GET and QUIT
ledger.py call IP PORT [S]   waits for the greeting, stores and reads a value, stays for S seconds, quits
"""

import socket
import socketserver
import sys
import time


class Ledger(socketserver.StreamRequestHandler):
    entries = {}

    def handle(self):
        self.say(f"220 ledger at your service, {self.client_address[0]}")
        for line in self.rfile:
            words = line.decode().split()
            match words:
                case ["PUT", key, value]:
                    self.entries[key] = value
                    self.say("250 stored")
                case ["GET", key]:
                    self.say(f"250 {self.entries.get(key, '-')}")
                case ["QUIT"]:
                    self.say("221 goodbye")
                    return
                case _:
                    self.say("500 what?")

    def say(self, text):
        self.wfile.write(f"{text}\n".encode())


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 128


def serve(port):
    with Server(("0.0.0.0", port), Ledger) as server:
        print("ready", flush=True)
        server.serve_forever()


def call(ip, port, seconds):
    with socket.create_connection((ip, port), timeout=5) as connection:
        lines = connection.makefile("r")
        # Not a byte is sent before the server has spoken.
        greeting = lines.readline().strip()
        print("greeting:", greeting, flush=True)
        print("peer:", connection.getpeername()[0], flush=True)
        for command, wanted in (("PUT colour indigo", "250 stored"), ("GET colour", "250 indigo")):
            connection.sendall(f"{command}\n".encode())
            answer = lines.readline().strip()
            if answer != wanted:
                sys.exit(f"{command}: wanted {wanted!r}, got {answer!r}")
        time.sleep(seconds)
        connection.sendall(b"QUIT\n")
        if lines.readline().strip() != "221 goodbye" or lines.readline() != "":
            sys.exit("the ledger did not say goodbye")


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(int(sys.argv[2]))
    else:
        call(sys.argv[2], int(sys.argv[3]), float(sys.argv[4]) if len(sys.argv) > 4 else 0.0)
