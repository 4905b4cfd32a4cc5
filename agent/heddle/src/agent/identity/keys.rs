//! Keys in the keeper's memory, so that a restarted agent serves before any authority answers: taken over once at the start, given anew
//! whenever they change or the keeper is another one.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use heddle_datapath::client::KeeperClient;
use heddle_datapath::keys;
use heddle_identity::TrustDomain;
use heddle_identity::store::Restored;
use heddle_proto::keeper::v1::Role;

use tokio::time::Instant;

use super::{Identities, memory};
use crate::VERSION;

/// Certificates of many accounts come together: they are given at once.
const SETTLE: Duration = Duration::from_millis(100);
/// How often the roots are looked at: they change without any certificate doing so.
const LOOK: Duration = Duration::from_secs(2);
/// Pause after a failure, at most: the keeper restarts.
const RETRY_MAX: Duration = Duration::from_secs(5);

impl Identities {
    /// Takes over what the keeper holds of a former agent. To be done before the first lease: what was restored is used by leases that
    /// come after it.
    pub async fn restore(&self, run_dir: &Path) {
        let run_dir = run_dir.to_owned();
        let held = tokio::task::spawn_blocking(move || -> Result<_> {
            let keeper = KeeperClient::connect(&run_dir, Role::Agent, VERSION)?;
            keeper.get_keys()?.map(keys::read).transpose().context("the keeper's key memory")
        });
        let restored = match held.await.context("key memory").flatten() {
            Ok(None) => return,
            Ok(Some(bytes)) => self.take_over(&bytes).context("what the keeper holds"),
            Err(error) => Err(error),
        };
        match restored {
            Ok(restored) => {
                let count = restored.certificates;
                tracing::info!(target: "identity", certificates = count, "taken over from the former agent");
                for refused in restored.refused {
                    tracing::warn!(target: "identity", id = refused.id, why = refused.why, "not taken over");
                }
            }
            // As at a first start: the authority is asked.
            Err(error) => {
                tracing::warn!(target: "identity", error = format!("{error:#}"), "no certificate taken over");
            }
        }
    }

    fn take_over(&self, bytes: &[u8]) -> Result<Restored> {
        let contents = memory::decode(bytes).map_err(anyhow::Error::msg)?;
        let restored = self.store.restore(contents.export)?;
        // A root is rotated in no less than two lifetimes of certificates: while one of before is good, so are the roots. Older ones would
        // be in the way of what the authority says first.
        if restored.certificates > 0 && self.tells_roots {
            for (domain, roots) in contents.roots {
                self.store.bundles().set(&domain, Some(Arc::new(roots)));
            }
        }
        Ok(restored)
    }

    /// The keeper may be another one: it is given the keys again.
    pub fn keeper_attached(&self) {
        self.keys_wanted.notify_one();
    }

    /// Gives the keeper the keys whenever they change, until dropped.
    pub async fn keep(self: Arc<Self>, run_dir: PathBuf) {
        let mut changes = self.store.changes();
        let mut retry: Option<(Instant, Duration)> = None;
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut generation = 0;
        loop {
            tokio::select! {
                changed = changes.changed() => if changed.is_err() { return },
                () = self.keys_wanted.notified() => {}
                _ = look.tick() => if self.store.bundles().generation() == generation { continue },
                () = tokio::time::sleep_until(retry.map_or_else(Instant::now, |(at, _)| at)), if retry.is_some() => {}
            }
            tokio::time::sleep(SETTLE).await;
            changes.borrow_and_update();
            let now = self.store.bundles().generation();
            let given = self.give(run_dir.clone()).await;
            let mut state = self.lock();
            match given {
                Ok(left_out) => {
                    retry = None;
                    generation = now;
                    state.keys_error = None;
                    if left_out > state.keys_left_out {
                        tracing::warn!(target: "identity", left_out, "the keeper's memory has no room for all keys");
                    }
                    state.keys_left_out = left_out;
                }
                Err(error) => {
                    let error = format!("{error:#}");
                    if state.keys_error.as_ref() != Some(&error) {
                        tracing::warn!(target: "identity", error, "the keeper was not given the keys; trying again");
                    }
                    let pause = retry.map_or(SETTLE, |(_, pause)| pause * 2).min(RETRY_MAX);
                    retry = Some((Instant::now() + pause, pause));
                    state.keys_error = Some(error);
                }
            }
        }
    }

    /// An agent that could use nothing of what a keeper holds, and has got nothing yet, leaves it there: the reason may pass (a wrong clock)
    /// or be its own (an older version), and the next one needs what is good. Answers how many accounts there was no room for.
    async fn give(&self, run_dir: PathBuf) -> Result<usize> {
        let has_any = self.store.has_any();
        let has_had_keys = {
            let mut state = self.lock();
            state.has_had_keys |= has_any;
            state.has_had_keys
        };
        let bundles = self.store.bundles();
        let current = bundles.current();
        let told = |(domain, _): (&TrustDomain, _)| Some((domain.clone(), bundles.authoritative(domain.as_str())?));
        let told: Vec<_> = current.iter().filter_map(told).collect();
        let roots: Vec<_> = told.iter().map(|(domain, roots)| (domain.clone(), &**roots)).collect();
        let export = self.store.export()?;
        let left_out = export.left_out;
        let bytes = memory::encode(&roots, &export).context("too large for key memory")?;
        drop(export);
        let given = tokio::task::spawn_blocking(move || -> Result<usize> {
            let memory = keys::seal(&bytes)?;
            drop(bytes);
            use std::os::fd::AsFd;
            let keeper = KeeperClient::connect(&run_dir, Role::Agent, VERSION)?;
            if has_had_keys || keeper.get_keys()?.is_none() {
                keeper.put_keys(memory.as_fd())?;
            }
            Ok(left_out)
        });
        given.await.context("key memory")?
    }
}
