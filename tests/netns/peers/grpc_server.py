"""A gRPC server of all four call kinds, on bytes: what it is called with decides what it does. Usage: grpc_server.py PORT."""

import sys
import time
from concurrent import futures

import grpc


def unary(request, context):
    if request == b"fail":
        context.set_trailing_metadata((("why", "asked for"),))
        context.abort(grpc.StatusCode.FAILED_PRECONDITION, "as you wish")
    if request == b"sleep":
        time.sleep(5)
    metadata = dict(context.invocation_metadata())
    context.send_initial_metadata((("seen", metadata.get("tag", "-")),))
    context.set_trailing_metadata((("bin-bin", b"\x00\xff"),))
    return b"unary:" + request + b" from " + context.peer().encode()


def server_stream(request, context):
    if request == b"forever":
        context.add_callback(lambda: print("cancelled", flush=True))
        while context.is_active():
            yield b"tick"
            time.sleep(0.02)
        return
    for n in range(int(request)):
        yield b"%d" % n


def client_stream(requests, context):
    return b"%d" % sum(len(r) for r in requests)


def bidi(requests, context):
    for request in requests:
        yield b"echo:" + request


handler = grpc.method_handlers_generic_handler(
    "test.Peer",
    {
        "Unary": grpc.unary_unary_rpc_method_handler(unary),
        "ServerStream": grpc.unary_stream_rpc_method_handler(server_stream),
        "ClientStream": grpc.stream_unary_rpc_method_handler(client_stream),
        "Bidi": grpc.stream_stream_rpc_method_handler(bidi),
    },
)
options = [("grpc.max_receive_message_length", -1), ("grpc.so_reuseport", 0)]
server = grpc.server(futures.ThreadPoolExecutor(max_workers=16), options=options)
server.add_generic_rpc_handlers((handler,))
assert server.add_insecure_port(f"[::]:{sys.argv[1]}"), "the port is taken"
server.start()
print("listening", flush=True)
server.wait_for_termination()
