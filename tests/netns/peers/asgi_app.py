"""The application that hypercorn serves over HTTP/1.1, HTTP/2 and WebSocket over both; the path or the message decides what it does."""

import hashlib
import json
import os


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            event = await receive()
            await send({"type": event["type"] + ".complete"})
            if event["type"] == "lifespan.shutdown":
                return
    elif scope["type"] == "websocket":
        await websocket(scope, receive, send)
    else:
        await http(scope, receive, send)


async def http(scope, receive, send):
    length, digest = 0, hashlib.sha256()
    while True:
        event = await receive()
        if event["type"] == "http.disconnect":
            return
        length += len(event["body"])
        digest.update(event["body"])
        if not event.get("more_body"):
            break
    headers = []
    if scope["path"] == "/hints":
        for style in (b"</a.css>; rel=preload", b"</b.css>; rel=preload"):
            await send({"type": "http.response.early_hint", "links": [style]})
    trailers = scope["path"] == "/trailers"
    if trailers:
        headers.append((b"trailer", b"x-sum"))
    told = {
        "version": scope["http_version"],
        "method": scope["method"],
        "length": length,
        "sha256": digest.hexdigest(),
        "client": scope["client"][0],
        "headers": {name.decode(): value.decode() for name, value in scope["headers"]},
    }
    await send({"type": "http.response.start", "status": 200, "headers": headers, "trailers": trailers})
    await send({"type": "http.response.body", "body": json.dumps(told).encode() + b"\n"})
    if trailers:
        await send({"type": "http.response.trailers", "headers": [(b"x-sum", b"6")]})


async def websocket(scope, receive, send):
    assert (await receive())["type"] == "websocket.connect"
    if scope["path"] == "/forbidden":
        await send({"type": "websocket.close"})
        return
    offered = scope["subprotocols"]
    await send({"type": "websocket.accept", "subprotocol": offered[-1] if offered else None})
    name = scope["path"]
    while True:
        event = await receive()
        if event["type"] == "websocket.disconnect":
            print(name, "closed", event["code"], flush=True)
            return
        text, data = event.get("text"), event.get("bytes")
        if text == "who":
            await send({"type": "websocket.send", "text": f"HTTP/{scope['http_version']} {scope['client'][0]}"})
        elif text and text.startswith("close "):
            await send({"type": "websocket.close", "code": int(text.split()[1]), "reason": "as you wish"})
        elif text == "die":
            os._exit(1)
        elif text is not None:
            await send({"type": "websocket.send", "text": text})
        else:
            await send({"type": "websocket.send", "bytes": data})
