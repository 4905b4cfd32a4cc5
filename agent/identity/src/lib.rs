//! Who is who: SPIFFE ids, keys, the certificate store and its rotation, TLS configs and the verification of peers.
//!
//! * [`spiffe`], [`certificate`], [`verify`]: what an identity is, and whether a peer has it. Pure: bytes, roots and the time come in.
//! * [`rotation`]: when to ask for which certificate, as a state machine without clock or I/O; [`store`] runs it and holds what came back.
//! * [`issuer`]: the trait behind which a CA is. [`bundle`]: the roots per trust domain. [`export`]: keys in the keeper's memory.
//! * [`tls`]: configs for rustls, both sides, and named [`failure`]s. No socket is opened here.
#![forbid(unsafe_code)]

pub mod bundle;
pub mod certificate;
pub mod clock;
pub mod contact;
pub mod credential;
pub mod export;
pub mod failure;
pub mod issuer;
pub mod key;
pub mod metrics;
pub mod provider;
pub mod rotation;
pub mod spiffe;
pub mod store;
pub mod tls;
pub mod verify;

pub use bundle::{BundleStore, Roots, TrustBundles};
pub use certificate::{CertificateFacts, Subject, Validity};
pub use clock::{Clock, SystemClock};
pub use contact::{IssuerStatus, Silence};
pub use credential::Credential;
pub use failure::{HandshakeFailure, Refusal};
pub use issuer::{
    CertificateIssuer, CertificateRequest, IssueError, IssueErrorKind, IssuedCertificate, Issuing, Retry, TellingRoots,
};
pub use key::WorkloadKey;
pub use metrics::{HandshakeMetrics, Side};
pub use rotation::State;
pub use spiffe::{SpiffeId, TrustDomain};
pub use store::{CertificateStatus, CertificateStore, Lease, StoreConfig};
pub use tls::{Alpn, ClientConfigs, Peer, ServerConfigs};
pub use verify::{ExpectedIds, Standing};
