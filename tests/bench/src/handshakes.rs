//! New connections of mutual TLS 1.3, one after the other: what a full handshake costs the server, or a resumed one.
//!
//! A connection counts when the server's first byte has come through it (its HTTP/2 SETTINGS): only then has it accepted the client's
//! certificate. Resumption is off on our side, so that resumed handshakes can only be measured of others.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, HandshakeKind, SignatureScheme};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;

use crate::cpu;
use crate::load::{Meter, Tally, nanoseconds};

const PATIENCE: Duration = Duration::from_secs(5);

/// The load to make.
#[derive(Args)]
pub struct Arguments {
    #[arg(long)]
    to: SocketAddr,
    /// Own certificate and those above it
    #[arg(long)]
    chain: PathBuf,
    /// Own private key
    #[arg(long)]
    key: PathBuf,
    /// Resume the session of the connection before; the first is not counted, and one that is not resumed is a failure
    #[arg(long)]
    resume: bool,
    /// Connections at a time
    #[arg(long, default_value_t = 16)]
    connections: usize,
    /// Length of the measured window
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Processes whose CPU time is measured
    #[arg(long, value_delimiter = ',')]
    watch: Vec<u32>,
    /// Core to stay on
    #[arg(long)]
    core: Option<usize>,
}

/// Makes the load and prints [`crate::load::Seen`] as JSON.
pub fn run(arguments: &Arguments) -> Result<()> {
    if let Some(core) = arguments.core {
        cpu::pin(std::process::id(), core)?;
    }
    // Each has sessions of its own.
    let connectors = (0..arguments.connections).map(|_| connector(arguments)).collect::<Result<Vec<_>>>()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let seen = runtime.block_on(async {
        if arguments.resume {
            for connector in &connectors {
                one(connector, arguments.to).await.context("a session to resume")?;
            }
        }
        let resume = arguments.resume;
        let before = Meter::read(&arguments.watch)?;
        let until = before.at + Duration::from_secs_f64(arguments.seconds);
        let mut connections = JoinSet::new();
        for connector in connectors {
            let to = arguments.to;
            connections.spawn(async move {
                let mut tally = Tally::default();
                while Instant::now() < until {
                    let started = Instant::now();
                    match tokio::time::timeout(PATIENCE, one(&connector, to)).await {
                        Ok(Ok(kind)) if (kind == Some(HandshakeKind::Resumed)) == resume => {
                            tally.times_ns.push(nanoseconds(started.elapsed()))
                        }
                        Ok(Ok(kind)) => tally.fail(&anyhow::anyhow!("a handshake of another kind: {kind:?}")),
                        Ok(Err(error)) => tally.fail(&error),
                        Err(_) => tally.fail(&anyhow::anyhow!("no answer within {PATIENCE:?}")),
                    }
                }
                tally
            });
        }
        let mut tally = Tally::default();
        while let Some(one) = connections.join_next().await {
            tally.add(one.context("a connection's task ended badly")?);
        }
        tally.into_seen(&before, &Meter::read(&arguments.watch)?)
    })?;
    println!("{}", serde_json::to_string(&seen)?);
    Ok(())
}

/// The preface of HTTP/2 with empty SETTINGS.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00";

async fn one(connector: &TlsConnector, to: SocketAddr) -> Result<Option<HandshakeKind>> {
    let tcp = TcpStream::connect(to).await.context("connect")?;
    tcp.set_nodelay(true)?;
    let mut stream = connector.connect(ServerName::from(to.ip()), tcp).await.context("handshake")?;
    stream.write_all(PREFACE).await.context("preface")?;
    if stream.read(&mut [0; 64]).await.context("SETTINGS")? == 0 {
        bail!("the server ended the connection");
    }
    let kind = stream.get_ref().1.handshake_kind();
    stream.shutdown().await.context("close_notify")?;
    Ok(kind)
}

/// Shows the certificate, offers `h2` and what there is to resume if that is wanted, and takes whoever answers: the server's work is measured, not ours.
fn connector(arguments: &Arguments) -> Result<TlsConnector> {
    let chain = CertificateDer::pem_file_iter(&arguments.chain)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .with_context(|| format!("read {}", arguments.chain.display()))?;
    let key =
        PrivateKeyDer::from_pem_file(&arguments.key).with_context(|| format!("read {}", arguments.key.display()))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anyone(provider)))
        .with_client_auth_cert(chain, key)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.resumption = if arguments.resume { Resumption::in_memory_sessions(8) } else { Resumption::disabled() };
    Ok(TlsConnector::from(Arc::new(config)))
}

/// Checks the signature of the handshake, so that the server has to make a good one, and no name.
#[derive(Debug)]
struct Anyone(Arc<CryptoProvider>);

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 is not spoken here".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
