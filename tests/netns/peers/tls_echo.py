"""An application with TLS of its own: shows its own certificate, asks for none, echoes. Usage: tls_echo.py PORT CHAIN KEY [ALPN].

Prints one line per connection: `alpn NAME version VERSION`, or `failed WHY`.
"""

import asyncio
import ssl
import sys

port, chain, key = int(sys.argv[1]), sys.argv[2], sys.argv[3]
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(chain, key)
if len(sys.argv) > 4:
    context.set_alpn_protocols(sys.argv[4].split(","))


async def echo(reader, writer):
    session = writer.get_extra_info("ssl_object")
    print("alpn", session.selected_alpn_protocol(), "version", session.version(), flush=True)
    try:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    except OSError as error:
        print("failed", error, flush=True)
    finally:
        writer.close()


async def main():
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda loop, told: print("failed", told.get("exception"), flush=True))
    for host in ("0.0.0.0", "::"):
        await asyncio.start_server(echo, host, port, ssl=context)
    await asyncio.Event().wait()


asyncio.run(main())
