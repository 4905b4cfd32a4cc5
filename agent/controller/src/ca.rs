//! The certificate authority: plain rules first, then files, then the server.
//!
//! * [`request`] reads what is to be signed, [`placement`] and [`nodes`] decide who may have it, [`authority`] signs, [`rotation`] says when
//!   roots may change. None of them knows a file, a socket or a clock.
//! * `key` is a CA's key and its way through memory; [`directory`] keeps all of it in [`files`]; [`server`] brings calls to [`service`], which asks the rules.

pub mod authority;
pub mod directory;
pub mod files;
mod json;
mod key;
pub mod names;
pub mod nodes;
pub mod placement;
pub mod request;
pub mod rotation;
pub mod server;
pub mod service;

pub use authority::{Authority, LIFETIME_MAX, ServerName};
pub use directory::{CaFacts, Contents, Directory, DirectoryError, ImportedRoot, Step};
pub use server::{CaServer, ServeError, ServerOptions};
