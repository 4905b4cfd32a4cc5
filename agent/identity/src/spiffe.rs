//! SPIFFE ids: who a workload is. Parsed once at the edge; whatever holds a [`SpiffeId`] need not check it again.
//!
//! The rules are those of the SPIFFE-ID standard (§2: characters, lengths, no query, fragment, port or user), narrowed to the one path
//! layout of Kubernetes meshes, `/ns/<namespace>/sa/<service account>`, whose two names follow RFC 1123.

use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// Longest SPIFFE id in bytes (SPIFFE-ID §2.3).
pub const ID_BYTES_MAX: usize = 2048;
/// Longest trust domain in bytes (SPIFFE-ID §2.3).
pub const TRUST_DOMAIN_BYTES_MAX: usize = 255;
const NAMESPACE_BYTES_MAX: usize = 63;
const SERVICE_ACCOUNT_BYTES_MAX: usize = 253;
const SCHEME: &str = "spiffe://";

/// Why a text is no SPIFFE id, trust domain, or identity of this mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpiffeError {
    /// Longer than [`ID_BYTES_MAX`].
    #[error("longer than 2048 bytes")]
    TooLong,
    /// Another scheme, or `spiffe` not in lower case.
    #[error("does not begin with `spiffe://`")]
    Scheme,
    /// Empty trust domain.
    #[error("has no trust domain")]
    NoTrustDomain,
    /// Longer than [`TRUST_DOMAIN_BYTES_MAX`].
    #[error("trust domain is longer than 255 bytes")]
    TrustDomainTooLong,
    /// Also what a port, a user or an upper-case letter runs into.
    #[error("trust domain holds something else than a-z, 0-9, `.`, `-` and `_`")]
    TrustDomainCharacter,
    /// A query and a fragment run into this.
    #[error("path is not `/ns/<namespace>/sa/<service account>`")]
    Path,
    /// Not an RFC 1123 label.
    #[error("namespace is not an RFC 1123 label (a-z, 0-9, `-`, at most 63 bytes)")]
    Namespace,
    /// Not an RFC 1123 subdomain.
    #[error("service account is not an RFC 1123 subdomain (a-z, 0-9, `-`, `.`, at most 253 bytes)")]
    ServiceAccount,
}

/// The authority part of SPIFFE ids: everything signed under one set of roots. `cluster.local` unless the mesh says otherwise.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TrustDomain(Arc<str>);

impl TrustDomain {
    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for TrustDomain {
    type Err = SpiffeError;

    fn from_str(name: &str) -> Result<Self, SpiffeError> {
        check_trust_domain(name)?;
        Ok(Self(name.into()))
    }
}

impl Borrow<str> for TrustDomain {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`. Cloning shares the text; equality and order are those of the URI.
#[derive(Clone)]
pub struct SpiffeId {
    uri: Arc<str>,
    trust_domain_bytes: u8,
    namespace_bytes: u8,
}

impl SpiffeId {
    /// Of a service account.
    pub fn new(trust_domain: &TrustDomain, namespace: &str, service_account: &str) -> Result<Self, SpiffeError> {
        format!("{SCHEME}{trust_domain}/ns/{namespace}/sa/{service_account}").parse()
    }

    /// The URI as it stands in certificates.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.uri
    }

    /// Name of the trust domain.
    #[must_use]
    pub fn trust_domain(&self) -> &str {
        &self.uri[SCHEME.len()..SCHEME.len() + usize::from(self.trust_domain_bytes)]
    }

    /// Kubernetes namespace.
    #[must_use]
    pub fn namespace(&self) -> &str {
        let start = SCHEME.len() + usize::from(self.trust_domain_bytes) + "/ns/".len();
        &self.uri[start..start + usize::from(self.namespace_bytes)]
    }

    /// Name of the service account.
    #[must_use]
    pub fn service_account(&self) -> &str {
        let start = SCHEME.len()
            + usize::from(self.trust_domain_bytes)
            + "/ns/".len()
            + usize::from(self.namespace_bytes)
            + "/sa/".len();
        &self.uri[start..]
    }
}

impl FromStr for SpiffeId {
    type Err = SpiffeError;

    fn from_str(uri: &str) -> Result<Self, SpiffeError> {
        if uri.len() > ID_BYTES_MAX {
            return Err(SpiffeError::TooLong);
        }
        let rest = uri.strip_prefix(SCHEME).ok_or(SpiffeError::Scheme)?;
        let (trust_domain, path) = rest.split_once('/').map_or((rest, None), |(domain, path)| (domain, Some(path)));
        check_trust_domain(trust_domain)?;
        let (namespace, service_account) = path
            .and_then(|path| path.strip_prefix("ns/"))
            .and_then(|names| names.split_once('/'))
            .and_then(|(namespace, rest)| Some((namespace, rest.strip_prefix("sa/")?)))
            .filter(|(_, service_account)| !service_account.contains('/'))
            .ok_or(SpiffeError::Path)?;
        if namespace.len() > NAMESPACE_BYTES_MAX || !is_label(namespace) {
            return Err(SpiffeError::Namespace);
        }
        if service_account.len() > SERVICE_ACCOUNT_BYTES_MAX || !service_account.split('.').all(is_label) {
            return Err(SpiffeError::ServiceAccount);
        }
        // Both lengths were checked to fit.
        let (Ok(trust_domain_bytes), Ok(namespace_bytes)) = (trust_domain.len().try_into(), namespace.len().try_into())
        else {
            return Err(SpiffeError::TooLong);
        };
        Ok(Self { uri: uri.into(), trust_domain_bytes, namespace_bytes })
    }
}

impl PartialEq for SpiffeId {
    fn eq(&self, other: &Self) -> bool {
        self.uri == other.uri
    }
}

impl Eq for SpiffeId {}

impl std::hash::Hash for SpiffeId {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.uri.hash(state);
    }
}

impl PartialOrd for SpiffeId {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for SpiffeId {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.uri.cmp(&other.uri)
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.uri)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.uri)
    }
}

fn check_trust_domain(name: &str) -> Result<(), SpiffeError> {
    if name.is_empty() {
        return Err(SpiffeError::NoTrustDomain);
    }
    if name.len() > TRUST_DOMAIN_BYTES_MAX {
        return Err(SpiffeError::TrustDomainTooLong);
    }
    let is_allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'_');
    if name.bytes().all(is_allowed) { Ok(()) } else { Err(SpiffeError::TrustDomainCharacter) }
}

/// RFC 1123: letters, digits and dashes, neither end a dash.
fn is_label(text: &str) -> bool {
    let is_alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = text.as_bytes();
    bytes.first().is_some_and(|&b| is_alphanumeric(b))
        && bytes.last().is_some_and(|&b| is_alphanumeric(b))
        && bytes.iter().all(|&b| is_alphanumeric(b) || b == b'-')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reads_the_parts() {
        let id: SpiffeId = "spiffe://cluster.local/ns/shop/sa/web.front-1".parse().unwrap();
        assert_eq!((id.trust_domain(), id.namespace(), id.service_account()), ("cluster.local", "shop", "web.front-1"));
        assert_eq!(id.to_string(), "spiffe://cluster.local/ns/shop/sa/web.front-1");
        assert_eq!(id, SpiffeId::new(&"cluster.local".parse().unwrap(), "shop", "web.front-1").unwrap());
    }

    #[test]
    fn refuses_what_the_standard_refuses() {
        use SpiffeError as E;
        let long = |n: usize| "a".repeat(n);
        for (uri, want) in [
            ("", E::Scheme),
            ("https://td/ns/a/sa/b", E::Scheme),
            ("SPIFFE://td/ns/a/sa/b", E::Scheme),
            ("spiffe:/td/ns/a/sa/b", E::Scheme),
            (" spiffe://td/ns/a/sa/b", E::Scheme),
            ("spiffe:///ns/a/sa/b", E::NoTrustDomain),
            ("spiffe://", E::NoTrustDomain),
            ("spiffe://TD/ns/a/sa/b", E::TrustDomainCharacter),
            ("spiffe://td:80/ns/a/sa/b", E::TrustDomainCharacter),
            ("spiffe://user@td/ns/a/sa/b", E::TrustDomainCharacter),
            ("spiffe://user:pw@td/ns/a/sa/b", E::TrustDomainCharacter),
            ("spiffe://[::1]/ns/a/sa/b", E::TrustDomainCharacter),
            ("spiffe://td%41/ns/a/sa/b", E::TrustDomainCharacter),
            ("spiffe://tä/ns/a/sa/b", E::TrustDomainCharacter),
            ("spiffe://td?x/ns/a/sa/b", E::TrustDomainCharacter),
            ("spiffe://td", E::Path),
            ("spiffe://td/", E::Path),
            ("spiffe://td/ns/a", E::Path),
            ("spiffe://td/ns/a/sa", E::Path),
            ("spiffe://td/ns/a/sa/b/", E::Path),
            ("spiffe://td/ns/a/sa/b/c", E::Path),
            ("spiffe://td//ns/a/sa/b", E::Path),
            ("spiffe://td/NS/a/sa/b", E::Path),
            ("spiffe://td/ns/a/SA/b", E::Path),
            ("spiffe://td/./ns/a/sa/b", E::Path),
            ("spiffe://td/ns//sa/b", E::Namespace),
            ("spiffe://td/ns/../sa/b", E::Namespace),
            ("spiffe://td/ns/A/sa/b", E::Namespace),
            ("spiffe://td/ns/a.b/sa/b", E::Namespace),
            ("spiffe://td/ns/-a/sa/b", E::Namespace),
            ("spiffe://td/ns/a/sa/", E::ServiceAccount),
            ("spiffe://td/ns/a/sa/b?q=1", E::ServiceAccount),
            ("spiffe://td/ns/a/sa/b#f", E::ServiceAccount),
            ("spiffe://td/ns/a/sa/b%2fc", E::ServiceAccount),
            ("spiffe://td/ns/a/sa/..", E::ServiceAccount),
            ("spiffe://td/ns/a/sa/b..c", E::ServiceAccount),
            ("spiffe://td/ns/a/sa/B", E::ServiceAccount),
            ("spiffe://td/ns/a/sa/b\0", E::ServiceAccount),
            ("spiffe://td/ns/a/sa/b ", E::ServiceAccount),
            (&format!("spiffe://{}/ns/a/sa/b", long(256)), E::TrustDomainTooLong),
            (&format!("spiffe://td/ns/{}/sa/b", long(64)), E::Namespace),
            (&format!("spiffe://td/ns/a/sa/{}", long(254)), E::ServiceAccount),
            (&format!("spiffe://td/ns/a/sa/{}", long(2048)), E::TooLong),
        ] {
            assert_eq!(uri.parse::<SpiffeId>(), Err(want), "{uri}");
        }
        let longest = format!("spiffe://{}/ns/{}/sa/{}", long(255), long(63), long(253));
        let id: SpiffeId = longest.parse().unwrap();
        assert_eq!((id.trust_domain().len(), id.namespace().len(), id.service_account().len()), (255, 63, 253));
    }

    proptest! {
        #[test]
        fn whatever_parses_prints_back_and_splits_into_legal_parts(
            domain in "[a-z0-9._-]{1,40}", namespace in "[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?",
            account in "[a-z0-9]([a-z0-9-]{0,9}[a-z0-9])?(\\.[a-z0-9]([a-z0-9-]{0,9}[a-z0-9])?){0,3}",
        ) {
            let id = SpiffeId::new(&domain.parse().unwrap(), &namespace, &account).unwrap();
            prop_assert_eq!((id.trust_domain(), id.namespace(), id.service_account()), (&*domain, &*namespace, &*account));
            prop_assert_eq!(id.as_str().parse::<SpiffeId>().unwrap(), id);
        }

        /// Close to legal ids, so that many parse: those that do are exactly their parts put together again.
        #[test]
        fn no_second_spelling_of_an_id_parses(uri in "spiffe://[a-zA-B0-9._:@?%-]{0,8}/(ns|sa|NS|\\.)?/[a-zA-B0-9./%-]{0,8}/?(sa)?/[a-zA-B0-9./%?#-]{0,8}") {
            if let Ok(id) = uri.parse::<SpiffeId>() {
                let domain: TrustDomain = id.trust_domain().parse().unwrap();
                let again = SpiffeId::new(&domain, id.namespace(), id.service_account()).unwrap();
                prop_assert_eq!(again.as_str(), &*uri);
                prop_assert!(!uri.contains(['?', '#', '%', ':' , '@', 'A']) || uri.matches(':').count() == 1);
            }
        }

        #[test]
        fn any_text_is_answered_without_panic(text in ".{0,80}") {
            let _ = text.parse::<SpiffeId>();
            let _ = text.parse::<TrustDomain>();
        }
    }
}
