//! Wire types: `heddle.keeper.v1` (agent, CNI and CLI to keeper) and `heddle.debug.v1` (CLI to agent). Generated; no logic here.
#![forbid(unsafe_code)]
#![allow(missing_docs, clippy::all, reason = "generated from the .proto files, which carry the documentation")]

/// `heddle.keeper.v1`
pub mod keeper {
    pub mod v1 {
        include!(concat!(env!("OUT_DIR"), "/heddle.keeper.v1.rs"));
    }
}

/// `heddle.debug.v1`
pub mod debug {
    pub mod v1 {
        include!(concat!(env!("OUT_DIR"), "/heddle.debug.v1.rs"));
    }
}
