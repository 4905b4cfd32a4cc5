//! Peers that attack: they present what they want and accept anybody. The data plane's tests use them as well, by path.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::version::TLS13;
use rustls::{
    ClientConfig, DigitallySignedStruct, DistinguishedName, Error, ServerConfig, SignatureScheme,
    SupportedProtocolVersion,
};

/// An attacker's client: presents what it wants, accepts any server.
pub struct Client {
    pub certificate: Option<Arc<CertifiedKey>>,
    pub version: &'static SupportedProtocolVersion,
    pub alpn: Vec<Vec<u8>>,
}

impl Client {
    pub fn with(certificate: impl Into<Option<Arc<CertifiedKey>>>) -> Self {
        Self { certificate: certificate.into(), version: &TLS13, alpn: vec![b"heddle/h2".to_vec()] }
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
