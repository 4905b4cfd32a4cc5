//! Why a handshake failed: one named reason each, whichever side noticed, so that they can be counted and shown.

use std::fmt;
use std::io;
use std::sync::Arc;

use heddle_telemetry::Reason;
use rustls::{AlertDescription, CertificateError, OtherError, PeerIncompatible, PeerMisbehaved};

/// Why a handshake failed. The words are those of [`Reason`], so that log, metric and command line agree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum HandshakeFailure {
    /// The peer's chain leads to none of the roots of the trust domain it claims.
    UnknownRoot,
    /// The peer claims a trust domain that is not ours and not federated, or not that of the expected identity.
    WrongTrustDomain,
    /// The peer proved to be somebody, but not who was expected.
    WrongIdentity,
    /// The peer's certificate, or one above it, has expired.
    Expired,
    /// The peer's certificate, or one above it, is not valid yet, beyond what clocks may differ.
    NotYetValid,
    /// The peer presented no certificate.
    NoCertificate,
    /// The peer's certificate breaks a rule: not exactly one SPIFFE id, a CA as leaf, wrong usage, malformed, bad signature.
    BadCertificate,
    /// No application protocol in common.
    BadAlpn,
    /// No TLS 1.3.
    ProtocolVersion,
    /// No cipher suite, group or signature scheme in common.
    NoCommonParameters,
    /// The peer refused our certificate; the alert is in the detail.
    RefusedByPeer,
    /// This side has no certificate to present (yet).
    NoOwnCertificate,
    /// The handshake did not end in time.
    Timeout,
    /// The connection ended in the middle of the handshake.
    Closed,
    /// The peer's bytes are not TLS, or break its rules.
    Protocol,
}

impl HandshakeFailure {
    /// All, in declaration order: `ALL[f as usize] == f`.
    pub const ALL: [Self; 15] = [
        Self::UnknownRoot,
        Self::WrongTrustDomain,
        Self::WrongIdentity,
        Self::Expired,
        Self::NotYetValid,
        Self::NoCertificate,
        Self::BadCertificate,
        Self::BadAlpn,
        Self::ProtocolVersion,
        Self::NoCommonParameters,
        Self::RefusedByPeer,
        Self::NoOwnCertificate,
        Self::Timeout,
        Self::Closed,
        Self::Protocol,
    ];

    /// The reason of the connection's record.
    #[must_use]
    pub const fn reason(self) -> Reason {
        match self {
            Self::UnknownRoot => Reason::TlsUnknownRoot,
            Self::WrongTrustDomain => Reason::TlsWrongTrustDomain,
            Self::WrongIdentity => Reason::TlsWrongIdentity,
            Self::Expired => Reason::TlsExpired,
            Self::NotYetValid => Reason::TlsNotYetValid,
            Self::NoCertificate => Reason::TlsNoCertificate,
            Self::BadCertificate => Reason::TlsBadCertificate,
            Self::BadAlpn => Reason::TlsBadAlpn,
            Self::ProtocolVersion => Reason::TlsProtocolVersion,
            Self::NoCommonParameters => Reason::TlsNoCommonParameters,
            Self::RefusedByPeer => Reason::TlsRefusedByPeer,
            Self::NoOwnCertificate => Reason::TlsNoOwnCertificate,
            Self::Timeout => Reason::TlsTimeout,
            Self::Closed => Reason::TlsClosed,
            Self::Protocol => Reason::TlsProtocol,
        }
    }

    /// The stable word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        self.reason().as_str()
    }

    /// Of an error of rustls. In TLS 1.3 a client has finished before the server looks at its certificate: what the server thinks of it
    /// comes with the first read, and the error of that read belongs here too while nothing else was received.
    #[must_use]
    pub fn of(error: &rustls::Error) -> Self {
        use rustls::Error as E;
        match error {
            E::InvalidCertificate(error) => Self::of_certificate(error),
            E::NoCertificatesPresented => Self::NoCertificate,
            E::NoApplicationProtocol => Self::BadAlpn,
            E::AlertReceived(alert) => Self::of_alert(*alert),
            E::PeerIncompatible(why) => match why {
                PeerIncompatible::ServerDoesNotSupportTls12Or13
                | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig
                | PeerIncompatible::SupportedVersionsExtensionRequired
                | PeerIncompatible::Tls12NotOffered
                | PeerIncompatible::Tls12NotOfferedOrEnabled => Self::ProtocolVersion,
                _ => Self::NoCommonParameters,
            },
            E::PeerMisbehaved(PeerMisbehaved::SelectedUnofferedApplicationProtocol) => Self::BadAlpn,
            // What rustls says when the certificate resolver of a server has nothing.
            E::General(text) if text == "no server certificate chain resolved" => Self::NoOwnCertificate,
            _ => Self::Protocol,
        }
    }

    /// Of an I/O error: rustls's own inside it, a timeout, or the end of the connection.
    #[must_use]
    pub fn of_io(error: &io::Error) -> Self {
        if let Some(error) = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            return Self::of(error);
        }
        match error.kind() {
            io::ErrorKind::TimedOut => Self::Timeout,
            io::ErrorKind::InvalidData => Self::Protocol,
            _ => Self::Closed,
        }
    }

    fn of_certificate(error: &CertificateError) -> Self {
        match error {
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => Self::Expired,
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => Self::NotYetValid,
            CertificateError::UnknownIssuer => Self::UnknownRoot,
            CertificateError::Other(OtherError(error)) => {
                error.downcast_ref::<Refusal>().map_or(Self::BadCertificate, |refusal| refusal.failure)
            }
            _ => Self::BadCertificate,
        }
    }

    fn of_alert(alert: AlertDescription) -> Self {
        match alert {
            AlertDescription::NoApplicationProtocol => Self::BadAlpn,
            AlertDescription::ProtocolVersion => Self::ProtocolVersion,
            AlertDescription::HandshakeFailure | AlertDescription::InsufficientSecurity => Self::NoCommonParameters,
            AlertDescription::CertificateRequired
            | AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnknownCA
            | AlertDescription::AccessDenied
            | AlertDescription::DecryptError => Self::RefusedByPeer,
            AlertDescription::CloseNotify | AlertDescription::UserCanceled => Self::Closed,
            _ => Self::Protocol,
        }
    }
}

impl fmt::Display for HandshakeFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::error::Error for HandshakeFailure {}

/// A peer's certificate that was not accepted, with what an operator needs to see.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{failure}: {detail}")]
pub struct Refusal {
    /// The named reason.
    pub failure: HandshakeFailure,
    /// Presented and expected, or the rule that was broken.
    pub detail: String,
}

impl Refusal {
    pub(crate) fn new(failure: HandshakeFailure, detail: impl Into<String>) -> Self {
        Self { failure, detail: detail.into() }
    }

    pub(crate) fn bad(detail: impl Into<String>) -> Self {
        Self::new(HandshakeFailure::BadCertificate, detail)
    }

    /// As rustls wants it: known kinds so that the peer gets the fitting alert, else ourselves, to be found again by
    /// [`HandshakeFailure::of`].
    pub(crate) fn into_rustls(self) -> rustls::Error {
        let error = match self.failure {
            HandshakeFailure::Expired => CertificateError::Expired,
            HandshakeFailure::NotYetValid => CertificateError::NotValidYet,
            HandshakeFailure::UnknownRoot => CertificateError::UnknownIssuer,
            _ => CertificateError::Other(OtherError(Arc::new(self))),
        };
        rustls::Error::InvalidCertificate(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_failure_has_its_own_word() {
        let mut words = std::collections::HashSet::new();
        for (i, failure) in HandshakeFailure::ALL.iter().enumerate() {
            assert_eq!(*failure as usize, i);
            assert!(words.insert(failure.as_str()), "{failure} twice");
            assert!(failure.as_str().starts_with("tls_"));
        }
    }

    #[test]
    fn a_refusal_is_found_again_behind_rustls_and_io() {
        for failure in [
            HandshakeFailure::UnknownRoot,
            HandshakeFailure::WrongTrustDomain,
            HandshakeFailure::WrongIdentity,
            HandshakeFailure::Expired,
            HandshakeFailure::NotYetValid,
            HandshakeFailure::BadCertificate,
        ] {
            let error = Refusal::new(failure, "x").into_rustls();
            assert_eq!(HandshakeFailure::of(&error), failure);
            assert_eq!(HandshakeFailure::of_io(&io::Error::new(io::ErrorKind::InvalidData, error)), failure);
        }
        let kinds = [
            (io::ErrorKind::TimedOut, HandshakeFailure::Timeout),
            (io::ErrorKind::UnexpectedEof, HandshakeFailure::Closed),
            (io::ErrorKind::ConnectionReset, HandshakeFailure::Closed),
            (io::ErrorKind::InvalidData, HandshakeFailure::Protocol),
        ];
        for (kind, failure) in kinds {
            assert_eq!(HandshakeFailure::of_io(&kind.into()), failure);
        }
    }
}
