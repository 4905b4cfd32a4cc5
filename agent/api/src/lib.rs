//! The object types users write (ours, and the fields we read of Kubernetes'), and their conversion into the model.
//!
//! Text becomes a tree with lines (`yaml`), the tree becomes typed fields by serde, the fields become model values
//! or a [`Problem`] that names field, line and remedy. An object with a problem never vanishes silently: what could be
//! read of it comes out marked invalid, so that it denies its own targets (DESIGN §7).
#![forbid(unsafe_code)]

pub mod authorization_policy;
mod de;
mod duration;
mod kind;
pub mod mesh;
pub mod mesh_tls;
pub mod meta;
pub mod namespace;
pub mod network_policy;
mod node;
pub mod object;
mod place;
pub mod pod;
mod problem;
mod reference_grant;
pub mod route;
pub mod schema;
pub mod selector;
pub mod service;
pub mod slice;
pub mod traffic_policy;
mod yaml;

pub use duration::NEVER;
pub use kind::{Key, Kind};
pub use mesh_tls::MeshTls;
pub use namespace::{MeshLabel, Namespace};
pub use object::{Dated, Item, Object, REPORTS_MAX, Reading, read};
pub use pod::Pod;
pub use problem::Problem;
pub use slice::EndpointSlice;
pub use yaml::{ALIASED_NODES_MAX, DEPTH_MAX, FILE_BYTES_MAX, NODES_MAX};
