"""A gRPC service of prices, and a client that calls it in three ways over one channel.

prices.py serve PORT NAME    Get answers a price, Watch streams as many as it is asked for, Set is forbidden
prices.py call HOST:PORT     prints one line of JSON for each call: method, code, messages, and who was seen by whom
"""

import json
import sys
from concurrent import futures

import grpc

GETS, WATCHED = 40, 10
# Whatever proxy the environment names, it is not meant for this.
OPTIONS = [("grpc.enable_http_proxy", 0), ("grpc.so_reuseport", 0)]


def serve(port, name):
    def price(context, number):
        return f"{name} {context.peer()} {number}".encode()

    def get(request, context):
        return price(context, 42)

    def watch(request, context):
        for number in range(int(request)):
            yield price(context, number)

    def set_price(request, context):
        context.set_trailing_metadata((("server", f"{name} {context.peer()}"),))
        context.abort(grpc.StatusCode.PERMISSION_DENIED, "prices are not yours to set")

    methods = {
        "Get": grpc.unary_unary_rpc_method_handler(get),
        "Watch": grpc.unary_stream_rpc_method_handler(watch),
        "Set": grpc.unary_unary_rpc_method_handler(set_price),
    }
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=8), options=OPTIONS)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("shop.Prices", methods),))
    if not server.add_insecure_port(f"0.0.0.0:{port}"):
        sys.exit(f"port {port} is taken")
    server.start()
    server.wait_for_termination()


def call(target):
    with grpc.insecure_channel(target, options=OPTIONS) as channel:
        get = channel.unary_unary("/shop.Prices/Get")
        watch = channel.unary_stream("/shop.Prices/Watch")
        set_price = channel.unary_unary("/shop.Prices/Set")
        for _ in range(GETS):
            tell("Get", lambda: [get(b"tea", timeout=5)])
        tell("Watch", lambda: list(watch(b"%d" % WATCHED, timeout=5)))
        tell("Set", lambda: [set_price(b"tea=0", timeout=5)])


def tell(method, make):
    told = {"method": method, "code": "OK", "messages": 0}
    try:
        answers = make()
        told["messages"] = len(answers)
        told["server"], told["client_seen"] = seen(answers[0])
    except grpc.RpcError as error:
        told["code"] = error.code().name
        told["details"] = error.details()
        trailers = dict(error.trailing_metadata() or ())
        told["server"], told["client_seen"] = seen(trailers.get("server", " ").encode())
    print(json.dumps(told), flush=True)


def seen(answer):
    """The server's name, and the client's address as the server saw it: `prices-1 ipv4:10.0.0.1:4000`."""
    server, _, peer = answer.decode().partition(" ")
    return server, peer.partition(" ")[0].removeprefix("ipv4:").rpartition(":")[0]


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(int(sys.argv[2]), sys.argv[3])
    else:
        call(sys.argv[2])
