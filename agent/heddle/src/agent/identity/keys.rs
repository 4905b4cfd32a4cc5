//! Keys in the keeper's memory, so that a restarted agent serves before any authority answers: taken over once at the start, given anew
//! whenever they change or the keeper is another one.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use heddle_datapath::client::KeeperClient;
use heddle_datapath::keys;
use heddle_proto::keeper::v1::Role;

use super::Identities;
use crate::VERSION;

/// Certificates of many accounts come together: they are given at once.
const SETTLE: Duration = Duration::from_millis(100);
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
            Ok(Some(bytes)) => self.store.restore(&bytes).context("what the keeper holds"),
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

    /// The keeper may be another one: it is given the keys again.
    pub fn keeper_attached(&self) {
        self.keys_wanted.notify_one();
    }

    /// Gives the keeper the keys whenever they change, until dropped.
    pub async fn keep(self: Arc<Self>, run_dir: PathBuf) {
        let mut changes = self.store.changes();
        let mut retry = None;
        loop {
            tokio::select! {
                changed = changes.changed() => if changed.is_err() { return },
                () = self.keys_wanted.notified() => {}
                () = tokio::time::sleep(retry.unwrap_or_default()), if retry.is_some() => {}
            }
            tokio::time::sleep(SETTLE).await;
            changes.borrow_and_update();
            let given = self.give(run_dir.clone()).await;
            let mut state = self.lock();
            match given {
                Ok(()) => {
                    retry = None;
                    state.keys_error = None;
                }
                Err(error) => {
                    let error = format!("{error:#}");
                    if state.keys_error.as_ref() != Some(&error) {
                        tracing::warn!(target: "identity", error, "the keeper was not given the keys; trying again");
                    }
                    retry = Some(retry.map_or(SETTLE, |pause: Duration| pause * 2).min(RETRY_MAX));
                    state.keys_error = Some(error);
                }
            }
        }
    }

    async fn give(&self, run_dir: PathBuf) -> Result<()> {
        let bytes = self.store.export()?;
        let given = tokio::task::spawn_blocking(move || -> Result<()> {
            let memory = keys::seal(&bytes)?;
            drop(bytes);
            use std::os::fd::AsFd;
            KeeperClient::connect(&run_dir, Role::Agent, VERSION)?.put_keys(memory.as_fd())?;
            Ok(())
        });
        given.await.context("key memory")?
    }
}
