"""A gRPC server of all four call kinds, on bytes: what it is called with decides what it does. Usage: grpc_server.py PORT [NAME]."""

import sys
import time
from concurrent import futures

import grpc

CODES = {code.value[0]: code for code in grpc.StatusCode}
NAME = sys.argv[2].encode() if len(sys.argv) > 2 else b""
failures = {}


def unary(request, context):
    if request.startswith(b"code "):
        number = int(request.split()[1])
        context.set_trailing_metadata((("why", "asked for"),))
        context.abort(CODES[number], f"Nr. {number}: 100 % Ärger")
    if request.startswith(b"unavailable "):
        # The first calls of this number fail: `unavailable 2 times, KEY`.
        failures[request] = failures.get(request, 0) + 1
        if failures[request] <= int(request.split()[1]):
            context.abort(grpc.StatusCode.UNAVAILABLE, "not yet")
        return dict(context.invocation_metadata()).get("x-heddle-attempt", "-").encode()
    if request == b"who":
        return NAME
    if request == b"sleep":
        time.sleep(1)
    if request == b"time left":
        request = b"%f" % context.time_remaining()
    if request == b"wait to be cancelled":
        context.add_callback(lambda: print("unary cancelled", flush=True))
        while context.is_active():
            time.sleep(0.02)
    metadata = context.invocation_metadata()
    many = ",".join(value for key, value in metadata if key == "many")
    seen = dict(metadata)
    context.send_initial_metadata(
        (("seen", seen.get("tag", "-")), ("seen-bin", seen.get("raw-bin", b"-")), ("seen-many", many or "-"))
    )
    context.set_trailing_metadata((("bin-bin", b"\x00\xff"),))
    return b"unary:" + request + b" from " + context.peer().encode()


def compressed(request, context):
    if request == b"who":
        return NAME
    context.set_compression(grpc.Compression.Gzip)
    return request


def server_stream(request, context):
    if request == b"forever":
        context.add_callback(lambda: print("stream cancelled", flush=True))
        while context.is_active():
            yield b"tick"
            time.sleep(0.02)
        return
    if request == b"big":
        for _ in range(32):
            yield bytes(1 << 20)
        return
    count, *fail = request.split()
    for n in range(int(count)):
        yield b"%d" % n
    if fail:
        context.abort(grpc.StatusCode.DATA_LOSS, "as you wish")


def client_stream(requests, context):
    return b"%d" % sum(len(r) for r in requests)


def bidi(requests, context):
    for request in requests:
        yield b"echo:" + request


handler = grpc.method_handlers_generic_handler(
    "test.Peer",
    {
        "Unary": grpc.unary_unary_rpc_method_handler(unary),
        "Compressed": grpc.unary_unary_rpc_method_handler(compressed),
        "ServerStream": grpc.unary_stream_rpc_method_handler(server_stream),
        "ClientStream": grpc.stream_unary_rpc_method_handler(client_stream),
        "Bidi": grpc.stream_stream_rpc_method_handler(bidi),
    },
)
options = [("grpc.max_receive_message_length", -1), ("grpc.so_reuseport", 0)]
server = grpc.server(futures.ThreadPoolExecutor(max_workers=32), options=options)
server.add_generic_rpc_handlers((handler,))
assert server.add_insecure_port(f"[::]:{sys.argv[1]}"), "the port is taken"
server.start()
print("listening", flush=True)
server.wait_for_termination()
