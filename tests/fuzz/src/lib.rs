//! Fuzz targets: each takes any bytes and panics if a promise is broken.
//!
//! They are run shortly, over their seeds and mutations of these, by every `cargo xtask test` (`tests/short.rs`), and as long as
//! wanted under libFuzzer by `cargo xtask fuzz`. A target's seeds are in `seeds/<its name>`; what once broke it stays there.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a panic is the report")]

pub mod mutate;

mod detect;
mod driver;
mod h1;
mod objects;
mod oracle;
mod policy;
mod translate;

/// One thing to throw bytes at.
pub struct Target {
    /// Its name, and that of its folder of seeds.
    pub name: &'static str,
    /// Panics if a promise is broken.
    pub run: fn(&[u8]),
}

macro_rules! targets {
    ($($name:ident: $run:path,)*) => {
        /// All targets.
        pub const TARGETS: &[Target] = &[$(Target { name: stringify!($name), run: $run }),*];
    };
}

targets! {
    h1_request: h1::request,
    h1_response: h1::response,
    chunked: h1::chunked,
    h1_to_h2: translate::h1_to_h2,
    h1_response_to_h2: translate::h1_response_to_h2,
    h2_to_h1: translate::h2_to_h1,
    h2_response_to_h1: translate::h2_response_to_h1,
    detect: detect::detection,
    client_hello: detect::hello,
    driver_h1: driver::h1,
    driver_h2: driver::h2,
    keeper_protocol: objects::keeper_protocol,
    map_contents: objects::map_contents,
    yaml_objects: objects::yaml_objects,
    path_normalize: policy::path_normalize,
    policy_matchers: policy::policy_matchers,
}

impl Target {
    /// The target of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<&'static Target> {
        TARGETS.iter().find(|target| target.name == name)
    }
}
