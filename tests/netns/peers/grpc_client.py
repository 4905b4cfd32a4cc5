"""Calls grpc_server.py and checks every answer. Usage: grpc_client.py HOST:PORT [counted|denied|closed|routed].

Everything gRPC can do; or, `counted`, a few calls whose messages can be counted; `denied`: only `Unary` is let in; `closed`: a stream that is
open must end when a policy closes it, which is waited for; `routed`: routes lead `Unary` to `one`, `Compressed` to `two`, and nothing else, and
UNAVAILABLE is retried twice.
"""

import sys
import threading
import time

import grpc

channel = grpc.insecure_channel(sys.argv[1], options=[("grpc.max_receive_message_length", -1)])
unary = channel.unary_unary("/test.Peer/Unary")
server_stream = channel.unary_stream("/test.Peer/ServerStream")
client_stream = channel.stream_unary("/test.Peer/ClientStream")
bidi = channel.stream_stream("/test.Peer/Bidi")


def fails(call, *arguments, **options):
    """The error of a call that must have one."""
    try:
        result = call(*arguments, **options)
        answer = result if isinstance(result, bytes) else list(result)
    except grpc.RpcError as error:
        return error
    raise AssertionError(f"no error but {answer}")


def counted():
    """15 calls: 94 messages sent, 134 received; two of the calls end with NOT_FOUND instead of an answer."""
    for _ in range(10):
        unary(b"hello", timeout=10)
    assert len(list(server_stream(b"100", timeout=10))) == 100
    client_stream((b"x" for _ in range(58)), timeout=10)
    assert len(list(bidi((b"x" for _ in range(23)), timeout=10))) == 23
    for _ in range(2):
        assert fails(unary, b"code 5", timeout=10).code() is grpc.StatusCode.NOT_FOUND


def four_kinds():
    assert [int(n) for n in server_stream(b"1000", timeout=10)] == list(range(1000))
    assert client_stream((b"x" * n for n in range(300)), timeout=10) == b"%d" % sum(range(300))
    assert list(bidi((b"%d" % n for n in range(300)), timeout=10)) == [b"echo:%d" % n for n in range(300)]

    # Turn by turn: each answer comes before the next request is made.
    turns = threading.Semaphore(1)

    def requests():
        for n in range(20):
            assert turns.acquire(timeout=5)
            yield b"%d" % n

    for n, answer in enumerate(bidi(requests(), timeout=10)):
        assert answer == b"echo:%d" % n
        turns.release()


def metadata():
    sent = (("tag", "t1"), ("raw-bin", bytes(range(256))), ("many", "1"), ("many", "2"))
    answer, call = unary.with_call(b"hello", metadata=sent, timeout=10)
    assert answer.startswith(b"unary:hello from "), answer
    print("peer", answer.split(b" from ")[1].decode(), flush=True)
    initial = [tuple(m) for m in call.initial_metadata()]
    assert ("seen", "t1") in initial and ("seen-bin", bytes(range(256))) in initial, initial
    assert ("seen-many", "1,2") in initial, initial
    assert ("bin-bin", b"\x00\xff") in [tuple(m) for m in call.trailing_metadata()], call.trailing_metadata()


def large():
    big = bytes(range(256)) * 16384
    assert unary(big, timeout=20).startswith(b"unary:" + big), "4 MiB there and back"
    assert client_stream((bytes(1 << 20) for _ in range(32)), timeout=20) == b"%d" % (32 << 20)
    assert sum(len(m) for m in server_stream(b"big", timeout=20)) == 32 << 20


def compression():
    compressed = channel.unary_unary("/test.Peer/Compressed")
    zeros = bytes(1 << 20)
    assert compressed(zeros, compression=grpc.Compression.Gzip, timeout=10) == zeros


def errors():
    for code in grpc.StatusCode:
        number, _ = code.value
        if number == 0:
            continue
        error = fails(unary, b"code %d" % number, timeout=10)
        assert error.code() is code and error.details() == f"Nr. {number}: 100 % Ärger", error
        assert ("why", "asked for") in [tuple(m) for m in error.trailing_metadata()], error.trailing_metadata()
    # In the middle of a stream: what came before it counts.
    messages = server_stream(b"3 and fail", timeout=10)
    assert [next(messages) for _ in range(3)] == [b"0", b"1", b"2"]
    assert fails(lambda: messages).code() is grpc.StatusCode.DATA_LOSS
    error = fails(channel.unary_unary("/test.Peer/Nothing"), b"", timeout=10)
    assert error.code() is grpc.StatusCode.UNIMPLEMENTED, error


def deadlines():
    left = float(unary(b"time left", timeout=7).split(b" from ")[0].removeprefix(b"unary:"))
    # gRPC rounds up what it sends.
    assert 5 < left < 7.1, left
    start = time.monotonic()
    assert fails(unary, b"sleep", timeout=0.3).code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert fails(server_stream, b"forever", timeout=0.3).code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert time.monotonic() - start < 3


def cancellation():
    """The server prints what was cancelled."""
    ticks = server_stream(b"forever", timeout=30)
    assert [next(ticks) for _ in range(5)] == [b"tick"] * 5
    ticks.cancel()
    waiting = unary.future(b"wait to be cancelled", timeout=30)
    time.sleep(0.1)
    waiting.cancel()


def concurrency():
    """More calls at once than a connection may have streams, beside streams that stay open."""
    more = threading.Event()

    def slowly():
        yield b"first"
        more.wait(20)
        yield b"last"

    open_streams = [bidi(slowly(), timeout=30) for _ in range(10)]
    assert [next(s) for s in open_streams] == [b"echo:first"] * 10
    calls = [unary.future(b"%d" % n, timeout=20) for n in range(500)]
    for n, call in enumerate(calls):
        assert call.result().startswith(b"unary:%d from " % n)
    more.set()
    assert [list(s) for s in open_streams] == [[b"echo:last"]] * 10


def denied():
    """A policy lets in one method."""
    assert unary(b"hello", timeout=10).startswith(b"unary:hello")
    for call in (server_stream(b"3", timeout=10), bidi(iter([b"x"]), timeout=10)):
        assert fails(lambda call=call: call).code() is grpc.StatusCode.PERMISSION_DENIED


def closed():
    """A stream that is open ends when it is not let in any more, and another on the same connection does not."""
    ticks = server_stream(b"forever", timeout=30)
    assert next(ticks) == b"tick"
    print("open", flush=True)
    try:
        for _ in ticks:
            pass
    except grpc.RpcError as error:
        print("ended with", error.code(), flush=True)
    assert unary(b"hello", timeout=10).startswith(b"unary:hello")


def routed():
    """By method; a call that fails is made again, with what is left of its time."""
    compressed = channel.unary_unary("/test.Peer/Compressed")
    for _ in range(10):
        assert unary(b"who", timeout=10) == b"one"
        assert compressed(b"who", timeout=10) == b"two"
    error = fails(server_stream, b"3", timeout=10)
    assert error.code() is grpc.StatusCode.UNIMPLEMENTED, error
    assert unary(b"unavailable 2 times, saved", timeout=10) == b"3", "the third attempt is told so"
    assert fails(unary, b"unavailable 3 times, lost", timeout=10).code() is grpc.StatusCode.UNAVAILABLE
    for code in (5, 13):
        assert fails(unary, b"code %d" % code, timeout=10).code().value[0] == code
    left = float(unary(b"time left", timeout=7).split(b" from ")[0].removeprefix(b"unary:"))
    assert 5 < left < 7.1, left
    start = time.monotonic()
    assert fails(unary, b"sleep", timeout=0.3).code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert time.monotonic() - start < 3


if sys.argv[2:] == ["counted"]:
    counted()
elif sys.argv[2:] == ["denied"]:
    denied()
elif sys.argv[2:] == ["closed"]:
    closed()
elif sys.argv[2:] == ["routed"]:
    routed()
else:
    for act in (metadata, four_kinds, large, compression, errors, deadlines, cancellation, concurrency):
        act()
        print(act.__name__, "done", flush=True)
print("all is well", flush=True)
