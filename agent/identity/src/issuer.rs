//! Who signs: the one trait this room asks of the world. Implemented over `heddle.ca.v1`, over Istio's certificate service, and by fakes.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use rustls::pki_types::CertificateDer;

use crate::bundle::Roots;
use crate::spiffe::{SpiffeId, TrustDomain};

/// What the issuer is asked.
#[derive(Clone, Debug)]
pub struct CertificateRequest {
    /// The service account that the certificate is for.
    pub id: SpiffeId,
    /// PKCS#10, DER, signed by the new key, naming `id` only.
    pub csr: Vec<u8>,
    /// Wanted lifetime; the issuer may give less.
    pub lifetime: Duration,
}

/// What it answers.
#[derive(Clone, Debug)]
pub struct IssuedCertificate {
    /// The leaf first, then intermediates towards the root, without it.
    pub chain: Vec<CertificateDer<'static>>,
    /// The roots of the id's trust domain: during a rotation the old and the new.
    pub roots: Vec<CertificateDer<'static>>,
}

/// The roots of a trust domain, to come; `None` from an issuer that tells them with certificates only.
pub type TellingRoots<'a> = Pin<Box<dyn Future<Output = Result<Option<(TrustDomain, Roots)>, IssueError>> + Send + 'a>>;

/// An answer to come.
pub type Issuing<'a> = Pin<Box<dyn Future<Output = Result<IssuedCertificate, IssueError>> + Send + 'a>>;

/// Signs requests. One request per call; who calls bounds how many are open and how long each may take.
pub trait CertificateIssuer: Send + Sync {
    /// Asks for a certificate. Dropping the future abandons the request.
    fn issue<'a>(&'a self, request: &'a CertificateRequest) -> Issuing<'a>;

    /// The roots that count now. They change long before any certificate has to: peers whose roots are replaced must be trusted before they
    /// show a certificate of the new one, and not be trusted behind the end of the old one.
    fn roots(&self) -> TellingRoots<'_> {
        Box::pin(async { Ok(None) })
    }

    /// Its name for people: an address, a file.
    fn name(&self) -> String;
}

/// Whether, and when, asking again makes sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// It does; the caller chooses when.
    Backoff,
    /// Not before this long (a Retry-After).
    After(Duration),
    /// The same request will be answered the same way until somebody changes something. Asked again at the longest interval only.
    Hopeless,
}

/// What kind of failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum IssueErrorKind {
    /// The issuer could not be reached or is overloaded.
    Unavailable,
    /// No answer in time.
    Timeout,
    /// The issuer will not sign this id for this node.
    Refused,
    /// The answer cannot be used: wrong key, wrong name, a chain that leads nowhere, times that make no sense.
    BadAnswer,
    /// This node could not make the request.
    Local,
}

impl IssueErrorKind {
    /// All.
    pub const ALL: [Self; 5] = [Self::Unavailable, Self::Timeout, Self::Refused, Self::BadAnswer, Self::Local];

    /// The stable word, as in metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unavailable => "unavailable",
            Self::Timeout => "timeout",
            Self::Refused => "refused",
            Self::BadAnswer => "bad_answer",
            Self::Local => "local",
        }
    }
}

/// Why there is no certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IssueError {
    /// Kind of failure.
    pub kind: IssueErrorKind,
    /// When to ask again.
    pub retry: Retry,
    /// For people.
    pub message: String,
}

impl IssueError {
    /// With a retry at the caller's choice.
    #[must_use]
    pub fn new(kind: IssueErrorKind, message: impl Into<String>) -> Self {
        Self { kind, retry: Retry::Backoff, message: message.into() }
    }

    /// The issuer's final word.
    #[must_use]
    pub fn refused(message: impl Into<String>) -> Self {
        Self { kind: IssueErrorKind::Refused, retry: Retry::Hopeless, message: message.into() }
    }

    /// The same with another retry.
    #[must_use]
    pub fn with_retry(self, retry: Retry) -> Self {
        Self { retry, ..self }
    }
}

impl fmt::Display for IssueError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.kind.as_str(), self.message)
    }
}

impl std::error::Error for IssueError {}
