//! One target of `heddle-fuzz` under libFuzzer, which calls it through an exported symbol. `HEDDLE_FUZZ_TARGET` names it.
#![no_main]

use std::sync::OnceLock;

use heddle_fuzz::Target;
use libfuzzer_sys::fuzz_target;

static TARGET: OnceLock<&Target> = OnceLock::new();

fuzz_target!(
    init: {
        let name = std::env::var("HEDDLE_FUZZ_TARGET").unwrap_or_default();
        let Some(target) = Target::named(&name) else {
            let names: Vec<&str> = heddle_fuzz::TARGETS.iter().map(|target| target.name).collect();
            eprintln!("HEDDLE_FUZZ_TARGET is {name:?}; it must be one of {}", names.join(", "));
            std::process::exit(2);
        };
        // What Rust's own `main` does: a peer that is gone is an error, not the end.
        // SAFETY: no other thread runs yet, and ignoring a signal installs no handler.
        unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
        let _ = TARGET.set(target);
    },
    |bytes: &[u8]| {
        if let Some(target) = TARGET.get() {
            (target.run)(bytes);
        }
    }
);
