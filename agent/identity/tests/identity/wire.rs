//! Handshakes over memory: two ends of rustls and the bytes between them.

use std::io::{self, Read, Write};
use std::sync::Arc;

use heddle_identity::tls::no_server_name;
use heddle_identity::{Alpn, HandshakeFailure, Peer};
use rustls::{ClientConfig, ClientConnection, Error, ServerConfig, ServerConnection};

/// What each side made of the other.
#[derive(Debug)]
pub struct Outcome {
    pub client: Result<Peer, HandshakeFailure>,
    pub server: Result<Peer, HandshakeFailure>,
    pub connections: (ClientConnection, ServerConnection),
}

impl Outcome {
    /// Both sides accepted each other.
    pub fn is_good(&self) -> bool {
        self.client.is_ok() && self.server.is_ok()
    }
}

pub fn handshake(client: &Arc<ClientConfig>, server: &Arc<ServerConfig>, alpn: Alpn) -> Outcome {
    let mut client = ClientConnection::new(Arc::clone(client), no_server_name()).unwrap();
    let mut server = ServerConnection::new(Arc::clone(server)).unwrap();
    let (mut client_error, mut server_error) = (None, None);
    // A few turns suffice; what is to be flushed after an error, alerts, goes too.
    for _ in 0..8 {
        let mut bytes = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut bytes).unwrap();
        }
        feed(&bytes, |input| server.read_tls(input), &mut server_error);
        step(server.process_new_packets().err(), &mut server_error);
        let mut bytes = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut bytes).unwrap();
        }
        feed(&bytes, |input| client.read_tls(input), &mut client_error);
        step(client.process_new_packets().err(), &mut client_error);
    }
    let result = |error: Option<Error>, peer: Result<Peer, heddle_identity::Refusal>| match error {
        Some(error) => Err(HandshakeFailure::of(&error)),
        None => peer.map_err(|refusal| refusal.failure),
    };
    Outcome {
        client: result(client_error, Peer::of_server(&client, alpn)),
        server: result(server_error, Peer::of_client(&server, alpn)),
        connections: (client, server),
    }
}

fn feed(mut bytes: &[u8], mut read: impl FnMut(&mut dyn Read) -> io::Result<usize>, error: &mut Option<Error>) {
    while error.is_none() && !bytes.is_empty() {
        if read(&mut bytes).is_err() {
            return;
        }
    }
}

fn step(error: Option<Error>, first: &mut Option<Error>) {
    if first.is_none() {
        *first = error;
    }
}

/// Bytes from one application to the other, both ways, through a completed handshake.
pub fn exchange((client, server): &mut (ClientConnection, ServerConnection)) {
    client.writer().write_all(b"ping").unwrap();
    let mut wire = Vec::new();
    client.write_tls(&mut wire).unwrap();
    server.read_tls(&mut &wire[..]).unwrap();
    server.process_new_packets().unwrap();
    let mut got = [0; 4];
    server.reader().read_exact(&mut got).unwrap();
    assert_eq!(&got, b"ping");
}
