//! Whole nodes for tests: real network namespaces, real cgroups, real programs and the real `heddle` binary, declared
//! in the words of a topology and taken apart whatever happens.
//!
//! Start at [`topology`] for the words, [`mesh::Mesh`] for what they become, [`place::Place`] for what can be run
//! where. The tests need root and say so.
//!
//! Environment: `HEDDLE_BIN` and `PODAPP_BIN` name the binaries, else they are taken from beside the test's own;
//! `ZTUNNEL_BIN` names a ztunnel to test and measure with; `HEDDLE_TEST_KEEP=1` leaves a mesh standing when its test
//! ends, to look around in it.

pub mod ca;
pub mod capture;
pub mod cgroup;
pub mod client;
pub mod control;
pub mod id;
pub mod mesh;
pub mod netns;
pub mod node;
pub mod objects;
pub mod pki;
pub mod place;
pub mod pod;
pub mod probe;
pub mod process;
pub mod programs;
pub mod report;
pub mod server;
pub mod sweep;
pub mod topology;
pub mod wait;
pub mod ztunnel;

/// What a suite needs.
pub mod prelude {
    pub use crate::ca::Ca;
    pub use crate::capture::{Capture, must_contain};
    pub use crate::client::{Dial, Held, Outcome, dial};
    pub use crate::control::refused_but;
    pub use crate::mesh::Mesh;
    pub use crate::node::Node;
    pub use crate::place::{Again, Place};
    pub use crate::pod::Pod;
    pub use crate::report::{Accepted, Connection, End, Event, Named, Summary};
    pub use crate::server::{Serve, Server, tcp};
    pub use crate::topology::{Declare, Families};
    pub use crate::wait::{wait_for, wait_until};
}
