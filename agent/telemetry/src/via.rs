//! How a connection or request travels between the two pods, the same word in log, CLI and metrics.

use serde::{Serialize, Serializer};

/// What carries it on the mesh's side: where it goes to on the source's agent, where it came from on the destination's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Via {
    /// Plain text, nobody authenticated.
    #[default]
    Plain,
    /// TLS with ALPN `heddle/h2` on the application's own port.
    Heddle,
    /// HBONE on port 15008.
    Hbone,
    /// Handed over inside the agent of the node both pods are on.
    Handover,
}

impl Via {
    /// The stable word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Heddle => "heddle",
            Self::Hbone => "hbone",
            Self::Handover => "handover",
        }
    }

    /// Whether both ends are authenticated: by mutual TLS, or by the listeners that accepted on this node.
    #[must_use]
    pub const fn is_authenticated(self) -> bool {
        !matches!(self, Self::Plain)
    }
}

impl Serialize for Via {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}
