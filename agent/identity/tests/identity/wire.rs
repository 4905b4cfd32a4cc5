//! Handshakes over memory: two ends of rustls and the bytes between them.

use std::io::{self, Read, Write};
use std::sync::Arc;

use heddle_identity::tls::no_server_name;
use heddle_identity::{Alpn, HandshakeFailure, Peer};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::version::TLS13;
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, DistinguishedName, Error, ServerConfig, ServerConnection,
    SignatureScheme, SupportedProtocolVersion,
};

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

/// An attacker's client: presents what it wants, accepts any server.
pub struct Client {
    pub certificate: Option<Arc<CertifiedKey>>,
    pub version: &'static SupportedProtocolVersion,
    pub alpn: Vec<Vec<u8>>,
}

impl Client {
    pub fn with(certificate: Arc<CertifiedKey>) -> Self {
        Self { certificate: Some(certificate), version: &TLS13, alpn: vec![b"heddle/h2".to_vec()] }
    }

    pub fn config(self) -> Arc<ClientConfig> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_protocol_versions(&[self.version]).unwrap();
        let builder = builder.dangerous().with_custom_certificate_verifier(Arc::new(AcceptAny));
        let mut config = match self.certificate {
            Some(certificate) => builder.with_client_cert_resolver(Arc::new(Fixed(certificate))),
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = self.alpn;
        Arc::new(config)
    }
}

/// An attacker's server.
pub struct Server {
    pub certificate: Arc<CertifiedKey>,
    pub version: &'static SupportedProtocolVersion,
    pub alpn: Vec<Vec<u8>>,
    pub asks_for_certificate: bool,
}

impl Server {
    pub fn with(certificate: Arc<CertifiedKey>) -> Self {
        Self { certificate, version: &TLS13, alpn: vec![b"heddle/h2".to_vec()], asks_for_certificate: true }
    }

    pub fn config(self) -> Arc<ServerConfig> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ServerConfig::builder_with_provider(provider).with_protocol_versions(&[self.version]).unwrap();
        let builder = if self.asks_for_certificate {
            builder.with_client_cert_verifier(Arc::new(AcceptAny))
        } else {
            builder.with_no_client_auth()
        };
        let mut config = builder.with_cert_resolver(Arc::new(Fixed(self.certificate)));
        config.alpn_protocols = self.alpn;
        Arc::new(config)
    }
}

#[derive(Debug)]
struct Fixed(Arc<CertifiedKey>);

impl rustls::client::ResolvesClientCert for Fixed {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }
    fn has_certs(&self) -> bool {
        true
    }
}

impl ResolvesServerCert for Fixed {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }
}

#[derive(Debug)]
struct AcceptAny;

fn schemes() -> Vec<SignatureScheme> {
    rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms.supported_schemes()
}

impl ServerCertVerifier for AcceptAny {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }
    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        schemes()
    }
}

impl ClientCertVerifier for AcceptAny {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }
    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        Ok(ClientCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }
    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        schemes()
    }
}
