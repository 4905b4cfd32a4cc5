//! Wire types: `heddle.keeper.v1` (agent, CNI and CLI to keeper), `heddle.debug.v1` (CLI to agent), `heddle.ca.v1` (agent to CA) and the
//! part of Istio's certificate service that both meshes' agents and CAs speak. Generated; no logic here.
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

/// `heddle.ca.v1`
pub mod ca {
    pub mod v1 {
        include!(concat!(env!("OUT_DIR"), "/heddle.ca.v1.rs"));
    }
}

/// `istio.v1.auth`
pub mod istio {
    pub mod auth {
        include!(concat!(env!("OUT_DIR"), "/istio.v1.auth.rs"));
    }
}
