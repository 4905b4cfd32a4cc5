//! Which protocol a connection speaks: declared by its port, else read from the client's first bytes.

/// A protocol the data plane can tell apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.x.
    Http1,
    /// HTTP/2 with prior knowledge.
    Http2,
    /// TLS; [`client_hello`] reads its names.
    Tls,
    /// Anything else: copied as it is.
    Opaque,
}

/// What a port declares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Declared {
    /// Nothing: detect.
    Unknown,
    /// HTTP, 1 or 2 by the first bytes (`http`, `kubernetes.io/ws`, `grpc-web`).
    Http,
    /// HTTP/2 with prior knowledge (`http2`, `grpc`, `kubernetes.io/h2c`).
    Http2,
    /// TLS (`https`, `tls`, `kubernetes.io/wss`).
    Tls,
    /// Opaque bytes (`tcp`, and every other known word: `mysql`, `redis`, `mongo` …).
    Opaque,
}

/// What a port declares: appProtocol first, then the port's name up to its first dash (`grpc-api`).
pub fn declared(app_protocol: Option<&str>, port_name: &str) -> Declared { todo!() }

/// The answer of [`detect`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detection {
    /// The bytes fit more than one protocol.
    NeedMore,
    /// Decided for good.
    Decided(Protocol),
}

/// Reads the client's first bytes. Needs at most [`DETECT_BYTES_MAX`].
pub fn detect(bytes: &[u8]) -> Detection { todo!() }

/// [`detect`] has decided when it has seen this many bytes.
pub const DETECT_BYTES_MAX: usize = 64;

/// What a ClientHello says before anything is encrypted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientHello {
    /// Server name, lower case, if one was sent and is a host name.
    pub server_name: Option<String>,
    /// ALPN protocol ids, in order.
    pub alpn: Vec<Vec<u8>>,
}

/// The answer of [`client_hello`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hello {
    /// The message is not complete.
    NeedMore,
    /// Read.
    Complete(ClientHello),
    /// Not a ClientHello, malformed, or larger than [`HELLO_BYTES_MAX`].
    Invalid,
}

/// Bytes of records looked at.
pub const HELLO_BYTES_MAX: usize = 16 * 1024;

/// Reads a ClientHello from the first TLS records (it may be fragmented).
pub fn client_hello(bytes: &[u8]) -> Hello { todo!() }
