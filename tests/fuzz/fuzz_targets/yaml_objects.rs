//! Files of objects: whatever the bytes, reading ends, does not panic, and keeps the documents around them.
#![no_main]

use libfuzzer_sys::fuzz_target;

const BEFORE: &[u8] = b"apiVersion: v1\nkind: Namespace\nmetadata: {name: before-the-fuzz}\n---\n";
const AFTER: &[u8] = b"\n---\napiVersion: v1\nkind: Namespace\nmetadata: {name: after-the-fuzz}\n";

fuzz_target!(|bytes: &[u8]| {
    let reading = heddle_api::read("fuzz", &[BEFORE, bytes, AFTER].concat());
    let named = |name: &str| reading.items.iter().any(|item| &*item.object.key().name == name);
    assert!(named("before-the-fuzz") && named("after-the-fuzz"));
});
