//! Whether the peer of a connection would be taken for what it is again: its certificate ends, and roots are withdrawn, while its connection
//! stays. TLS 1.3 has no second proof on the same connection, so where it lapsed another connection takes its place.

use std::cell::Cell;
use std::time::Duration;

use heddle_identity::{Peer, SpiffeId, Standing, TrustBundles};

/// When a peer is looked at for the first time: by then it is worth to know when what is above its certificate ends.
const FIRST_LOOK: Duration = Duration::from_secs(60);

/// A peer, and as of when it is trusted.
pub(crate) struct Trust {
    peer: Peer,
    /// Of the bundles it was verified by.
    generation: Cell<u64>,
    /// Beyond this moment something about it may have ended.
    good_until: Cell<Duration>,
}

/// What came to an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lapse {
    /// Time, of its certificate or one above it.
    Expired,
    /// The word of its root.
    Withdrawn,
}

impl Trust {
    /// Just verified, by bundles of this generation or a later one.
    pub(crate) fn new(peer: Peer, generation: u64, now: Duration) -> Self {
        let good_until = Cell::new(peer.not_after().min(now + FIRST_LOOK));
        Self { peer, generation: Cell::new(generation), good_until }
    }

    pub(crate) fn id(&self) -> &SpiffeId {
        self.peer.id()
    }

    /// Whether anything may have changed.
    pub(crate) fn is_due(&self, generation: u64, now: Duration) -> bool {
        self.generation.get() != generation || now > self.good_until.get()
    }

    /// Verifies the chain anew.
    pub(crate) fn review(&self, bundles: &TrustBundles, now: Duration) -> Result<(), Lapse> {
        self.generation.set(bundles.generation());
        // What lapsed does not come back; other roots may yet take back their word.
        self.good_until.set(Duration::MAX);
        match self.peer.review(bundles, now) {
            Standing::Good(until) => {
                self.good_until.set(until);
                Ok(())
            }
            Standing::Expired => Err(Lapse::Expired),
            Standing::Withdrawn(refusal) => {
                tracing::info!(peer = %self.peer, %refusal, "a connected peer is no longer vouched for");
                Err(Lapse::Withdrawn)
            }
        }
    }
}
