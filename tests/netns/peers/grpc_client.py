"""Calls grpc_server.py in every way and checks every answer. Usage: grpc_client.py HOST:PORT."""

import sys
import time

import grpc

channel = grpc.insecure_channel(sys.argv[1], options=[("grpc.max_receive_message_length", -1)])
unary = channel.unary_unary("/test.Peer/Unary")
server_stream = channel.unary_stream("/test.Peer/ServerStream")
client_stream = channel.stream_unary("/test.Peer/ClientStream")
bidi = channel.stream_stream("/test.Peer/Bidi")

answer, call = unary.with_call(b"hello", metadata=(("tag", "t1"),), timeout=10)
assert answer.startswith(b"unary:hello from "), answer
print("peer", answer.split(b" from ")[1].decode(), flush=True)
assert ("seen", "t1") in [tuple(m) for m in call.initial_metadata()], call.initial_metadata()
assert ("bin-bin", b"\x00\xff") in [tuple(m) for m in call.trailing_metadata()], call.trailing_metadata()

big = bytes(range(256)) * 16384
assert unary(big, timeout=20).startswith(b"unary:" + big), "4 MiB there and back"

assert [int(n) for n in server_stream(b"1000", timeout=10)] == list(range(1000))
assert client_stream((b"x" * n for n in range(300)), timeout=10) == b"%d" % sum(range(300))
assert list(bidi((b"%d" % n for n in range(300)), timeout=10)) == [b"echo:%d" % n for n in range(300)]

try:
    unary(b"fail", timeout=10)
    raise AssertionError("no error")
except grpc.RpcError as error:
    assert error.code() == grpc.StatusCode.FAILED_PRECONDITION and error.details() == "as you wish", error
    assert ("why", "asked for") in [tuple(m) for m in error.trailing_metadata()], error.trailing_metadata()

start = time.monotonic()
try:
    unary(b"sleep", timeout=0.3)
    raise AssertionError("no deadline")
except grpc.RpcError as error:
    assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED, error
assert time.monotonic() - start < 3

ticks = server_stream(b"forever", timeout=30)
for _ in range(5):
    assert next(ticks) == b"tick"
ticks.cancel()

try:
    channel.unary_unary("/test.Peer/Nothing")(b"", timeout=10)
    raise AssertionError("no error")
except grpc.RpcError as error:
    assert error.code() == grpc.StatusCode.UNIMPLEMENTED, error
print("all is well", flush=True)
