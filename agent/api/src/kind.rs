//! The kinds of objects that are read: what they are called, in which versions, and what tells two objects apart.

use std::sync::Arc;

use heddle_model::routing::RouteKind;

use crate::object;

/// Which kind an object is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// `v1 Namespace`.
    Namespace,
    /// `v1 Pod`.
    Pod,
    /// `v1 Service`.
    Service,
    /// `discovery.k8s.io/v1 EndpointSlice`.
    EndpointSlice,
    /// `heddle.dev/v1alpha1 Mesh`.
    Mesh,
    /// `heddle.dev/v1alpha1 MeshTLS`.
    MeshTls,
    /// `heddle.dev/v1alpha1 AuthorizationPolicy`.
    AuthorizationPolicy,
    /// `networking.k8s.io/v1 NetworkPolicy`.
    NetworkPolicy,
    /// `gateway.networking.k8s.io/v1 HTTPRoute` and others.
    Route(RouteKind),
    /// `gateway.networking.k8s.io/v1 ReferenceGrant`.
    ReferenceGrant,
    /// `heddle.dev/v1alpha1 TrafficPolicy`.
    TrafficPolicy,
}

/// What makes an object that object.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// Kind.
    pub kind: Kind,
    /// Namespace, empty for kinds without.
    pub namespace: Arc<str>,
    /// Name.
    pub name: Arc<str>,
}

impl Kind {
    /// The word in `kind`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Namespace => "Namespace",
            Self::Pod => "Pod",
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::Mesh => "Mesh",
            Self::MeshTls => "MeshTLS",
            Self::AuthorizationPolicy => "AuthorizationPolicy",
            Self::NetworkPolicy => "NetworkPolicy",
            Self::Route(kind) => kind.as_str(),
            Self::ReferenceGrant => "ReferenceGrant",
            Self::TrafficPolicy => "TrafficPolicy",
        }
    }

    /// The version of it that is read; of several the newest.
    #[must_use]
    pub const fn api_version(self) -> &'static str {
        self.api_versions()[0]
    }

    /// All versions of it that are read, the newest first. Their fields are the same.
    #[must_use]
    pub const fn api_versions(self) -> &'static [&'static str] {
        match self {
            Self::Namespace | Self::Pod | Self::Service => &["v1"],
            Self::EndpointSlice => &["discovery.k8s.io/v1"],
            Self::Mesh | Self::MeshTls | Self::AuthorizationPolicy | Self::TrafficPolicy => &["heddle.dev/v1alpha1"],
            Self::NetworkPolicy => &["networking.k8s.io/v1"],
            Self::Route(RouteKind::Grpc) => &["gateway.networking.k8s.io/v1"],
            Self::Route(RouteKind::Http) | Self::ReferenceGrant => {
                &["gateway.networking.k8s.io/v1", "gateway.networking.k8s.io/v1beta1"]
            }
            Self::Route(RouteKind::Tls) => &[
                "gateway.networking.k8s.io/v1",
                "gateway.networking.k8s.io/v1alpha3",
                "gateway.networking.k8s.io/v1alpha2",
            ],
            Self::Route(RouteKind::Tcp) => &["gateway.networking.k8s.io/v1", "gateway.networking.k8s.io/v1alpha2"],
        }
    }

    /// Whether it keeps somebody out: one that goes unnoticed is a hole.
    pub(crate) const fn guards(self) -> bool {
        matches!(self, Self::MeshTls | Self::AuthorizationPolicy | Self::NetworkPolicy)
    }

    /// Whether its objects are in namespaces.
    pub(crate) const fn namespaced(self) -> bool {
        !matches!(self, Self::Namespace | Self::Mesh)
    }

    pub(crate) const ALL: [Self; 14] = [
        Self::Namespace,
        Self::Pod,
        Self::Service,
        Self::EndpointSlice,
        Self::Mesh,
        Self::MeshTls,
        Self::AuthorizationPolicy,
        Self::NetworkPolicy,
        Self::Route(RouteKind::Http),
        Self::Route(RouteKind::Grpc),
        Self::Route(RouteKind::Tls),
        Self::Route(RouteKind::Tcp),
        Self::ReferenceGrant,
        Self::TrafficPolicy,
    ];
}

impl Key {
    /// `namespace/name`, or `name` for kinds without a namespace.
    #[must_use]
    pub fn object(&self) -> String {
        object::name_of(&self.namespace, &self.name)
    }
}
