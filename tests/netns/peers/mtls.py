"""TLS of the peers: mutual, with SPIFFE ids, by OpenSSL. Nothing of it is shared with the product."""

import ssl


def context(server, arguments):
    """A context that asks for a certificate of the roots, and shows its own unless told not to."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    made.check_hostname = False
    made.verify_mode = ssl.CERT_REQUIRED
    made.load_verify_locations(arguments.roots)
    if not arguments.no_certificate:
        made.load_cert_chain(arguments.chain, arguments.key)
    if arguments.tls12:
        made.maximum_version = ssl.TLSVersion.TLSv1_2
    else:
        made.minimum_version = ssl.TLSVersion.TLSv1_3
    if arguments.alpn:
        made.set_alpn_protocols(arguments.alpn.split(","))
    return made


def identity(certificate):
    """The one SPIFFE id of a verified certificate."""
    names = [name for kind, name in certificate.get("subjectAltName", ()) if kind == "URI"]
    if len(names) != 1 or not names[0].startswith("spiffe://"):
        raise ValueError(f"not exactly one SPIFFE id: {names}")
    return names[0]


def options(parser, alpn):
    parser.add_argument("--chain", help="own certificate and those above it")
    parser.add_argument("--key", help="own private key")
    parser.add_argument("--roots", required=True, help="roots that the peer's certificate must lead to")
    parser.add_argument("--expect", action="append", default=[], help="the peer must be one of these; none: anyone with a certificate")
    parser.add_argument("--alpn", default=alpn, help="application protocols, or nothing")
    parser.add_argument("--tls12", action="store_true", help="speak TLS 1.2 and no newer")
    parser.add_argument("--no-certificate", action="store_true", help="show none")
