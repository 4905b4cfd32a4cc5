"""Asks a certificate authority in Istio's protocol, as another project's agent would: gRPC's own TLS, messages made by hand.

Usage: istio_ca_client.py HOST:PORT ROOT.pem TOKEN ID [impersonate=ID]

Makes a P-256 key and a request with openssl, and prints what came back as JSON: either `chain` (PEM, leaf first, roots last) or `code` and
`details`. The key stays in the directory it was started in, as key.pem.
"""

import json
import subprocess
import sys

import grpc

target, root_file, token, identity = sys.argv[1:5]
impersonate = dict(argument.split("=", 1) for argument in sys.argv[5:]).get("impersonate", identity)


def varint(number):
    out = b""
    while number > 0x7F:
        out += bytes([number & 0x7F | 0x80])
        number >>= 7
    return out + bytes([number])


def field(number, payload):
    """A length-delimited field."""
    return varint(number << 3 | 2) + varint(len(payload)) + payload


def strings(message, number):
    """All length-delimited fields of that number."""
    found, at = [], 0

    def read():
        nonlocal at
        value, shift = 0, 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(message):
        key = read()
        assert key & 7 == 2, f"wire type {key & 7}"
        length = read()
        if key >> 3 == number:
            found.append(message[at : at + length].decode())
        at += length
    return found


subprocess.run(
    ["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", "key.pem"], check=True, capture_output=True
)
csr = subprocess.run(
    ["openssl", "req", "-new", "-key", "key.pem", "-subj", "/", "-addext", f"subjectAltName=critical,URI:{identity}"],
    check=True,
    capture_output=True,
).stdout
# google.protobuf.Struct { fields { key: "ImpersonatedIdentity" value { string_value: … } } }
entry = field(1, b"ImpersonatedIdentity") + field(2, field(3, impersonate.encode()))
request = field(1, csr) + varint(3 << 3) + varint(3600) + field(4, field(1, entry))

with open(root_file, "rb") as file:
    credentials = grpc.ssl_channel_credentials(root_certificates=file.read())
channel = grpc.secure_channel(target, credentials)
create = channel.unary_unary("/istio.v1.auth.IstioCertificateService/CreateCertificate")
metadata = [("authorization", f"Bearer {token}"), ("clusterid", "Kubernetes")]
try:
    answer = create(request, timeout=10, metadata=metadata)
    print(json.dumps({"chain": strings(answer, 1)}))
except grpc.RpcError as error:
    print(json.dumps({"code": error.code().name, "details": error.details(), "trailers": dict(error.trailing_metadata())}))
