//! Configs of rustls, made on first use and kept. One cache per worker: nothing is shared, nothing is locked.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::server::NoServerSessionStorage;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, ServerConfig, version};

use super::Alpn;
use super::verifier::{PeerVerifier, SlotResolver};
use crate::bundle::TrustBundles;
use crate::clock::TlsTime;
use crate::failure::HandshakeFailure;
use crate::provider::provider;
use crate::spiffe::SpiffeId;
use crate::store::{CertificateStore, Lease, Slot};
use crate::verify::ExpectedIds;

/// Most configs of one cache. Beyond it the cache is emptied: a config costs microseconds, connections keep theirs.
pub const CONFIGS_MAX: usize = 4096;

/// Configs of one bundle generation, each with the slot its resolver reads.
struct Cache<K, C> {
    generation: u64,
    configs: HashMap<K, (Arc<Slot>, Arc<C>)>,
}

impl<K: Eq + Hash, C> Cache<K, C> {
    fn new() -> Self {
        Self { generation: 0, configs: HashMap::new() }
    }

    fn get(&mut self, generation: u64, key: K, slot: &Arc<Slot>, make: impl FnOnce() -> Option<C>) -> Option<Arc<C>> {
        if self.generation != generation {
            self.generation = generation;
            self.configs.clear();
        }
        // A lease given back and taken again has another slot.
        if let Some((of, config)) = self.configs.get(&key)
            && Arc::ptr_eq(of, slot)
        {
            return Some(Arc::clone(config));
        }
        let config = Arc::new(make()?);
        if self.configs.len() >= CONFIGS_MAX {
            self.configs.clear();
        }
        self.configs.insert(key, (Arc::clone(slot), Arc::clone(&config)));
        Some(config)
    }
}

/// One worker's client configs.
pub struct ClientConfigs {
    store: CertificateStore,
    cache: Cache<(SpiffeId, ExpectedIds, Alpn), ClientConfig>,
}

impl ClientConfigs {
    /// Over a store's certificates and bundles.
    #[must_use]
    pub fn new(store: &CertificateStore) -> Self {
        Self { store: store.clone(), cache: Cache::new() }
    }

    /// For a call by `source` to an endpoint that must be one of `expected`. Ask for every connection: the config is of the bundles of now.
    pub fn get(
        &mut self,
        source: &Lease,
        expected: &ExpectedIds,
        alpn: Alpn,
    ) -> Result<Arc<ClientConfig>, HandshakeFailure> {
        if source.slot().credential().is_none() {
            return Err(HandshakeFailure::NoOwnCertificate);
        }
        let bundles = self.store.bundles().current();
        let slot = source.slot();
        let time = Arc::new(TlsTime(Arc::clone(self.store.clock())));
        let key = (source.id().clone(), expected.clone(), alpn);
        let config = self.cache.get(bundles.generation(), key, slot, || {
            let builder = ClientConfig::builder_with_details(provider(), time);
            // Fails only for a provider without suites of that version.
            let builder = builder.with_protocol_versions(&[&version::TLS13]).ok()?;
            let verifier = PeerVerifier {
                bundles: Arc::clone(&bundles),
                expected: Some(expected.clone()),
                lets_anonymous_in: false,
            };
            let mut config = builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(verifier))
                .with_client_cert_resolver(Arc::new(SlotResolver(Arc::clone(slot))));
            config.alpn_protocols = vec![alpn.as_bytes().to_vec()];
            config.resumption = Resumption::disabled();
            config.enable_sni = false;
            Some(config)
        });
        config.ok_or(HandshakeFailure::Protocol)
    }

    /// Configs kept.
    #[must_use]
    pub fn len(&self) -> usize {
        self.cache.configs.len()
    }

    /// Whether none is kept.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.cache.configs.is_empty()
    }
}

/// One worker's server configs.
pub struct ServerConfigs {
    store: CertificateStore,
    cache: Cache<(SpiffeId, Alpn), ServerConfig>,
}

impl ServerConfigs {
    /// Over a store's certificates and bundles.
    #[must_use]
    pub fn new(store: &CertificateStore) -> Self {
        Self { store: store.clone(), cache: Cache::new() }
    }

    /// For connections that a pod of `own` accepts. Clients must present a certificate of a trusted domain; ask
    /// [`Peer::of_client`](super::Peer::of_client) who it was.
    pub fn get(&mut self, own: &Lease, alpn: Alpn) -> Result<Arc<ServerConfig>, HandshakeFailure> {
        if own.slot().credential().is_none() {
            return Err(HandshakeFailure::NoOwnCertificate);
        }
        let bundles = self.store.bundles().current();
        let slot = own.slot();
        let time = Arc::new(TlsTime(Arc::clone(self.store.clock())));
        let config = self.cache.get(bundles.generation(), (own.id().clone(), alpn), slot, || {
            let builder = ServerConfig::builder_with_details(provider(), time);
            let builder = builder.with_protocol_versions(&[&version::TLS13]).ok()?;
            let verifier = PeerVerifier { bundles: Arc::clone(&bundles), expected: None, lets_anonymous_in: false };
            let mut config = builder
                .with_client_cert_verifier(Arc::new(verifier))
                .with_cert_resolver(Arc::new(SlotResolver(Arc::clone(slot))));
            config.alpn_protocols = vec![alpn.as_bytes().to_vec()];
            config.session_storage = Arc::new(NoServerSessionStorage {});
            config.send_tls13_tickets = 0;
            Some(config)
        });
        config.ok_or(HandshakeFailure::Protocol)
    }
}

/// A config for a call of this node's own, not of a pod: to a server that must be one of `expected`, with `own` as certificate if there is
/// one. Nothing changes under it: make another one when the certificate or the roots do.
///
/// # Errors
/// None that input can cause: the provider has TLS 1.3.
pub fn client_config(
    bundles: Arc<TrustBundles>,
    expected: ExpectedIds,
    own: Option<Arc<CertifiedKey>>,
    alpn: &[u8],
) -> Result<ClientConfig, rustls::Error> {
    let builder = ClientConfig::builder_with_provider(provider()).with_protocol_versions(&[&version::TLS13])?;
    let verifier = PeerVerifier { bundles, expected: Some(expected), lets_anonymous_in: false };
    let builder = builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = match own {
        Some(own) => builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(own))),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![alpn.to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_sni = false;
    Ok(config)
}

/// A config for a server that lets clients in without a certificate, because they prove who they are in another way; one that is presented
/// must hold. Nothing changes under it, as with [`client_config`].
///
/// # Errors
/// None that input can cause: the provider has TLS 1.3.
pub fn server_config(
    bundles: Arc<TrustBundles>,
    own: Arc<CertifiedKey>,
    alpn: &[u8],
) -> Result<ServerConfig, rustls::Error> {
    let builder = ServerConfig::builder_with_provider(provider()).with_protocol_versions(&[&version::TLS13])?;
    let verifier = PeerVerifier { bundles, expected: None, lets_anonymous_in: true };
    let mut config =
        builder.with_client_cert_verifier(Arc::new(verifier)).with_cert_resolver(Arc::new(SingleCertAndKey::from(own)));
    config.alpn_protocols = vec![alpn.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}
