//! What goes wrong between user space and kernel, in words an operator can act on.

use std::io;
use std::path::PathBuf;

/// An error of the datapath. Messages name the object and the next step.
#[derive(Debug, thiserror::Error)]
pub enum DatapathError {
    /// Built with the stub object.
    #[error("this binary was built without the eBPF programs: run `cargo xtask build-ebpf` and build it again")]
    NoPrograms,
    /// Pins of another ABI version.
    #[error(
        "the pins under {dir} have ABI version {found}, this keeper speaks {ours}: start the keeper version that made \
         them, or run `heddle uninstall --node` (frees all pods) and start this one"
    )]
    AbiVersion {
        /// Pin directory.
        dir: PathBuf,
        /// Version found.
        found: u32,
        /// Version of this binary.
        ours: u32,
    },
    /// Loading, attaching or pinning failed.
    #[error("{what}: {cause}")]
    Kernel {
        /// What was being done, with its object.
        what: String,
        /// What the kernel or the loader said.
        cause: String,
    },
    /// A file or socket operation failed.
    #[error("{what}: {source}")]
    Io {
        /// What was being done, with its object.
        what: String,
        /// The cause.
        source: io::Error,
    },
    /// Hooks do not run for the keeper's own sockets.
    #[error(
        "the eBPF hooks on cgroup {cgroup} do not run for this process, although it was moved under it: \
         is another cgroup namespace in the way? Start the keeper inside that cgroup"
    )]
    HooksDoNotRun {
        /// Attach point.
        cgroup: PathBuf,
    },
    /// The other side answered with an error.
    #[error("{message}")]
    Refused {
        /// Kind, as in heddle.keeper.v1.
        kind: heddle_proto::keeper::v1::error::Kind,
        /// Its message.
        message: String,
    },
    /// A packet that is not of the protocol.
    #[error("keeper protocol: {0}")]
    Protocol(String),
}

impl DatapathError {
    /// Wraps an I/O error with what was being done.
    pub fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }

    /// Wraps an errno.
    pub fn errno(what: impl Into<String>) -> impl FnOnce(nix::errno::Errno) -> Self {
        let what = what.into();
        move |errno| Self::Io { what, source: errno.into() }
    }

    /// Wraps a loader error.
    pub fn kernel<E: std::error::Error>(what: impl Into<String>) -> impl FnOnce(E) -> Self {
        let what = what.into();
        move |error| Self::Kernel { what, cause: chain(&error) }
    }
}

/// An error with all its causes on one line: the loader's own messages hide the errno one level down.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}
