//! Every target, shortly: its seeds, and what little mutation a test run can afford. The long run is `cargo xtask fuzz`.
#![allow(clippy::expect_used, reason = "a panic is the report")]

use std::time::Duration;

use heddle_fuzz::{TARGETS, Target, mutate};

/// For each target. They run beside each other.
const TIME: Duration = Duration::from_millis(1500);
const MUTATIONS_MAX: usize = 20_000;

macro_rules! short {
    ($($name:ident)*) => {
        const TESTED: &[&str] = &[$(stringify!($name)),*];
        $(
            #[test]
            fn $name() {
                let target = Target::named(stringify!($name)).expect("a target of this name");
                let run = mutate::short(target, TIME, MUTATIONS_MAX);
                println!("{run:?}");
                assert!(run.seeds > 0 && run.mutations > 0, "{run:?}");
            }
        )*
    };
}

short! {
    h1_request h1_response chunked h1_to_h2 h1_response_to_h2 h2_to_h1 h2_response_to_h1 detect client_hello driver_h1 driver_h2
    keeper_protocol map_contents yaml_objects path_normalize policy_matchers
}

#[test]
fn every_target_is_here() {
    assert_eq!(TESTED, TARGETS.iter().map(|target| target.name).collect::<Vec<_>>());
}
