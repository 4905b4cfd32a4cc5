//! Giving privileges up: after this the process is an ordinary user with no capability, and cannot get one back.

use anyhow::{Context, Result, bail};
use caps::{CapSet, CapsHashSet};
use nix::sys::prctl;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::{Gid, Uid, getuid, setgroups, setresgid, setresuid};

/// `UID[:GID]`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct User {
    /// User id, not 0.
    pub uid: u32,
    /// Group id, not 0.
    pub gid: u32,
}

impl std::str::FromStr for User {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (uid, gid) = text.split_once(':').unwrap_or((text, text));
        let number = |part: &str| part.parse::<u32>().map_err(|_| format!("`{part}` is not a numeric id"));
        let user = Self { uid: number(uid)?, gid: number(gid)? };
        if user.uid == 0 || user.gid == 0 {
            return Err("the agent must not be root: it parses tenants' bytes".into());
        }
        Ok(user)
    }
}

/// Becomes `user` without capabilities. Already another user: makes sure there are none.
///
/// # Errors
/// A privilege could not be given up: the agent must not start.
pub fn give_up(user: User) -> Result<()> {
    if getuid().is_root() {
        // While we still may: nothing this process ever executes can regain a capability.
        for capability in caps::all() {
            if caps::has_cap(None, CapSet::Bounding, capability).unwrap_or(false) {
                caps::drop(None, CapSet::Bounding, capability)
                    .with_context(|| format!("drop {capability} from the bounding set"))?;
            }
        }
        let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
        setgroups(&[]).context("drop supplementary groups")?;
        setresgid(gid, gid, gid).with_context(|| format!("become group {gid}"))?;
        setresuid(uid, uid, uid).with_context(|| format!("become user {uid}"))?;
    }
    let none = CapsHashSet::new();
    for set in [CapSet::Ambient, CapSet::Inheritable, CapSet::Effective, CapSet::Permitted] {
        match set {
            CapSet::Ambient => caps::clear(None, set).context("clear ambient capabilities")?,
            _ => caps::set(None, set, &none).with_context(|| format!("clear {set:?} capabilities"))?,
        }
    }
    prctl::set_no_new_privs().context("set no_new_privs")?;
    // Keys are in this memory. Becoming another user did it already, unless there was nothing to give up.
    prctl::set_dumpable(false).context("make this process undumpable")?;
    if getuid().is_root() || !caps::read(None, CapSet::Permitted).context("read capabilities")?.is_empty() {
        bail!("privileges were not given up");
    }
    Ok(())
}

/// Raises the limit of open files to the hard limit; a proxy needs two per connection.
pub fn raise_open_files() {
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard
        && let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
    {
        tracing::warn!(%error, soft, hard, "cannot raise the limit of open files");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users() {
        assert_eq!("65532".parse(), Ok(User { uid: 65532, gid: 65532 }));
        assert_eq!("10:20".parse(), Ok(User { uid: 10, gid: 20 }));
        for wrong in ["", "nobody", "0", "0:5", "5:0", "1:2:3", "-1"] {
            assert!(wrong.parse::<User>().is_err(), "{wrong}");
        }
    }
}
