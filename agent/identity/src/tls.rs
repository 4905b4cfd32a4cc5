//! TLS as this mesh speaks it: 1.3 only, mutual, SPIFFE ids instead of host names, no resumption.
//!
//! A config is made once per (identity, accepted peers, protocol, bundle generation) and serves every connection of that kind. Certificates
//! change under it: its resolver reads the account's slot. Roots do not: a new generation makes a new config. So whatever is ever kept
//! with a config (resumption, if it comes) cannot outlive the trust it was made under.

use std::fmt;
use std::net::Ipv4Addr;
use std::time::Duration;

use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConnection, CommonState, ProtocolVersion, ServerConnection};

use crate::bundle::TrustBundles;
use crate::certificate::Leaf;
use crate::failure::{HandshakeFailure, Refusal};
use crate::spiffe::SpiffeId;
use crate::verify::{PeerRole, Standing, review_peer};

mod config;
mod verifier;

pub use config::{ClientConfigs, ServerConfigs, client_config, server_config};

/// What is spoken inside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Alpn {
    /// Between Heddle agents, on the application's own port.
    Heddle,
    /// HBONE on port 15008, with peers of other makes.
    Hbone,
}

impl Alpn {
    /// The protocol's name on the wire.
    #[must_use]
    pub const fn as_bytes(self) -> &'static [u8] {
        match self {
            Self::Heddle => b"heddle/h2",
            Self::Hbone => b"h2",
        }
    }
}

/// A peer that proved who it is. There is no other way to make one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    id: SpiffeId,
    not_after: Duration,
    /// As it was presented, to be looked at again.
    chain: Box<[CertificateDer<'static>]>,
    role: PeerRole,
}

impl Peer {
    /// Who.
    #[must_use]
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// The last moment of its certificate, as time since 1970.
    #[must_use]
    pub fn not_after(&self) -> Duration {
        self.not_after
    }

    /// Whether it would be let in again. What was asked of it besides, to be one of those expected, holds for ever.
    #[must_use]
    pub fn review(&self, bundles: &TrustBundles, now: Duration) -> Standing {
        review_peer(&self.chain, self.role, bundles, now)
    }

    /// The client at the other end of a completed handshake made with a config of [`ServerConfigs`] for `alpn`.
    pub fn of_client(connection: &ServerConnection, alpn: Alpn) -> Result<Self, Refusal> {
        Self::of(connection, alpn, PeerRole::Client)
    }

    /// The server at the other end of a completed handshake made with a config of [`ClientConfigs`] for `alpn`.
    pub fn of_server(connection: &ClientConnection, alpn: Alpn) -> Result<Self, Refusal> {
        Self::of(connection, alpn, PeerRole::Server)
    }

    fn of(state: &CommonState, alpn: Alpn, role: PeerRole) -> Result<Self, Refusal> {
        if state.is_handshaking() {
            return Err(Refusal::new(HandshakeFailure::Protocol, "the handshake is not complete"));
        }
        if state.protocol_version() != Some(ProtocolVersion::TLSv1_3) {
            return Err(Refusal::new(HandshakeFailure::ProtocolVersion, "not TLS 1.3"));
        }
        // A peer that offers or selects nothing gets through rustls; not through here.
        if state.alpn_protocol() != Some(alpn.as_bytes()) {
            let got = state.alpn_protocol().map(|name| name.escape_ascii().to_string());
            let detail = format!("application protocol {}", got.as_deref().unwrap_or("missing"));
            return Err(Refusal::new(HandshakeFailure::BadAlpn, detail));
        }
        let chain = state.peer_certificates().unwrap_or_default();
        let leaf = chain.first().ok_or_else(|| Refusal::new(HandshakeFailure::NoCertificate, "no certificate"))?;
        // The verifier has accepted this very certificate; it is read again for the id and its end only.
        let leaf = Leaf::parse(leaf)?;
        let not_after = leaf.validity().not_after;
        Ok(Self { id: leaf.id, not_after, chain: chain.into(), role })
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.id.fmt(f)
    }
}

/// What rustls wants to be told as the server's name. An address is never sent as SNI, and the verifier does not look at it.
#[must_use]
pub fn no_server_name() -> ServerName<'static> {
    ServerName::from(std::net::IpAddr::V4(Ipv4Addr::UNSPECIFIED))
}
