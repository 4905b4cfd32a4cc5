//! Certificate authorities as this node's agent sees them: the identity room's trait over `heddle.ca.v1` and over Istio's certificate service.
//!
//! Both speak gRPC over TLS. Toward a Heddle authority the first contact is made with the node's token; what it brings is a node
//! certificate, kept in memory only, and from then on the two know each other by mutual TLS. Istio's protocol has a token in every call.

mod channel;
mod files;
mod heddle;
mod istio;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::ValueEnum;
use heddle_identity::{CertificateIssuer, TrustDomain};

pub use self::files::CaFiles;
pub use self::heddle::HeddleIssuer;
pub use self::istio::IstioIssuer;

/// Longest time for a connection to the authority, handshake included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest time for one answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Largest answer: a chain and a bundle of the largest size stay far below.
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// What an authority speaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum CaProtocol {
    /// `heddle.ca.v1`: token at the first contact, mutual TLS from then on.
    #[default]
    Heddle,
    /// `istio.v1.auth`: token in every call, the server known by its host name.
    Istio,
}

/// Where the authority is and how to get to know each other.
#[derive(Clone, Debug)]
pub struct CaOptions {
    /// `https://HOST:PORT`.
    pub url: String,
    /// The roots of the first contact and the node's token.
    pub files: CaFiles,
    /// What is spoken.
    pub protocol: CaProtocol,
    /// This node's name.
    pub node: String,
    /// The mesh's trust domain.
    pub trust_domain: TrustDomain,
}

/// The issuer of this node's certificates. Nothing is connected before the first request,
/// which must come from within a runtime.
///
/// # Errors
/// A URL that is none, by name.
pub fn issuer(options: &CaOptions) -> Result<Arc<dyn CertificateIssuer>> {
    let issuer: Arc<dyn CertificateIssuer> = match options.protocol {
        CaProtocol::Heddle => Arc::new(HeddleIssuer::new(options).context("--ca")?),
        CaProtocol::Istio => Arc::new(IstioIssuer::new(options).context("--ca")?),
    };
    Ok(issuer)
}
