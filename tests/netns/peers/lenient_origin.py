"""An origin that forgives: eventlet's WSGI server, told not to reject bad requests. Usage: lenient_origin.py PORTS_FILE.

It stands on Python's own http.server, whose fields are read by the parser of e-mail: bare LF, folded lines, repeated fields and blanks are
taken as they come; lengths and chunk sizes are whatever `int()` takes (`+5`, `1_0`, `0x5`). OpenStack's services ran on it.
Prints one JSON line per request, whole or not.
"""

import http.client
import json
import sys

import warnings

warnings.simplefilter("ignore")  # It says that it is deprecated.
import eventlet  # noqa: E402
from eventlet import wsgi  # noqa: E402

# Its own word for what it did before 2024.
wsgi.HttpProtocol.reject_bad_requests = False
# Its limit of 100 lines counts the empty one.
http.client._MAXHEADERS = 101


def tell(**facts):
    sys.__stdout__.write(json.dumps(facts) + "\n")
    sys.__stdout__.flush()


class Quiet:
    def write(self, text):
        pass


def application(port):
    def serve(environ, start_response):
        target = environ["RAW_PATH_INFO"] + ("?" + environ["QUERY_STRING"] if environ.get("QUERY_STRING") else "")
        method = environ["REQUEST_METHOD"]
        facts = {"port": port, "connection": environ["REMOTE_PORT"], "method": method, "target": target}
        facts["fields"] = [(name.lower(), value) for name, value in environ["headers_raw"]]
        body = bytearray()
        try:
            while part := environ["wsgi.input"].read(65536):
                body += part
            length = environ.get("CONTENT_LENGTH")
            if "HTTP_TRANSFER_ENCODING" not in environ and length and len(body) < int(length):
                raise OSError("the body is short")
        except Exception as error:  # Whatever it is, the request is not whole.
            tell(event="incomplete", body=bytes(body).hex(), why=repr(error), **facts)
            environ["eventlet.input"].get_socket().close()
            raise
        status = "405 Method Not Allowed" if method == "CONNECT" else "200 OK"
        tell(event="request", body=bytes(body).hex(), status=int(status[:3]), **facts)
        text = f"lenient {method} {target[:200]} {len(body)}".encode("latin1")
        start_response(status, [("Content-Length", str(len(text)))])
        return [] if method == "HEAD" else [text]

    return serve


with open(sys.argv[1], encoding="utf-8") as file:
    ports = json.load(file)
pool = eventlet.GreenPool(4000)
servers = []
for port in ports:
    listener = eventlet.listen(("0.0.0.0", port), reuse_port=False)
    servers.append(
        eventlet.spawn(
            wsgi.server,
            listener,
            application(port),
            custom_pool=pool,
            log=Quiet(),
            log_output=False,
            url_length_limit=1 << 17,
        )
    )
tell(event="listening")
servers[0].wait()
