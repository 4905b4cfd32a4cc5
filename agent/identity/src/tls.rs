//! TLS as this mesh speaks it: 1.3 only, mutual, SPIFFE ids instead of host names, no resumption.
//!
//! A config is made once per (identity, accepted peers, protocol, bundle generation) and serves every connection of that kind. Certificates
//! change under it: its resolver reads the account's slot. Roots do not: a new generation makes a new config. So whatever is ever kept
//! with a config (resumption, if it comes) cannot outlive the trust it was made under.

use std::fmt;
use std::net::Ipv4Addr;

use rustls::pki_types::ServerName;
use rustls::{ClientConnection, CommonState, ProtocolVersion, ServerConnection};

use crate::certificate::Leaf;
use crate::failure::{HandshakeFailure, Refusal};
use crate::spiffe::SpiffeId;

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
}

impl Peer {
    /// Who.
    #[must_use]
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// The client at the other end of a completed handshake made with a config of [`ServerConfigs`] for `alpn`.
    pub fn of_client(connection: &ServerConnection, alpn: Alpn) -> Result<Self, Refusal> {
        Self::of(connection, alpn)
    }

    /// The server at the other end of a completed handshake made with a config of [`ClientConfigs`] for `alpn`.
    pub fn of_server(connection: &ClientConnection, alpn: Alpn) -> Result<Self, Refusal> {
        Self::of(connection, alpn)
    }

    fn of(state: &CommonState, alpn: Alpn) -> Result<Self, Refusal> {
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
        let leaf = state.peer_certificates().and_then(|chain| chain.first());
        let leaf = leaf.ok_or_else(|| Refusal::new(HandshakeFailure::NoCertificate, "no certificate"))?;
        // The verifier has accepted this very certificate; it is read again for the id only.
        Ok(Self { id: Leaf::parse(leaf)?.id })
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
