//! A short run without a fuzzer: the seeds, and mutations of them. It sees no coverage; it is what every test run can afford.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use fastrand::Rng;

use crate::Target;

/// Inputs grow to this at most.
const INPUT_BYTES_MAX: usize = 4096;
/// Edits of one input.
const EDITS_MAX: usize = 6;
/// Pieces that parsers are sensitive to.
const TOKENS: &[&[u8]] = &[
    b"\r\n",
    b"\n",
    b"\r",
    b"\0",
    b" ",
    b"\t",
    b":",
    b",",
    b";",
    b"\"",
    b"0",
    b"1",
    b"-1",
    b"ffffffffffffffff",
    b"18446744073709551616",
    b"\r\n\r\n",
    b"0\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    b"HTTP/1.1 200 OK\r\n",
    b"HTTP/1.0",
    b"Content-Length: 3\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Connection: close\r\n",
    b"Connection: Upgrade\r\nUpgrade: websocket\r\n",
    b"Expect: 100-continue\r\n",
    b"HEAD",
    b"CONNECT a:443",
    b"\xff",
    b"\x80",
    b"~",
];

/// How much a short run did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Inputs in the target's folder.
    pub seeds: usize,
    /// Inputs made from them.
    pub mutations: usize,
}

/// Where the mutations of a short run begin.
const MUTATIONS_SEED: u64 = 0x6865_6464_6c65;

/// Runs a target over its seeds, all of them, and over mutations until `time` is over or there were `mutations_max`.
///
/// # Panics
/// When the target does: the input is in a file then, and the message says how to run it again.
pub fn short(target: &Target, time: Duration, mutations_max: usize) -> Run {
    let started = Instant::now();
    let seeds = seeds(target);
    seeds.iter().for_each(|seed| checked(target, seed));
    // The same mutations in every run: a test that passed passes again. New ones are what the long run is for.
    let mut rng = Rng::with_seed(MUTATIONS_SEED);
    let mut mutations = 0;
    while mutations < mutations_max && started.elapsed() < time {
        checked(target, &mutated(&seeds, &mut rng));
        mutations += 1;
    }
    Run { seeds: seeds.len(), mutations }
}

/// The inputs in a target's folder, in order of their names.
///
/// # Panics
/// If there is no such folder.
#[must_use]
pub fn seeds(target: &Target) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds").join(target.name);
    let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files.iter().map(|file| fs::read(file).unwrap()).collect()
}

fn checked(target: &Target, input: &[u8]) {
    let Err(panic) = catch_unwind(AssertUnwindSafe(|| (target.run)(input))) else { return };
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/fuzz/crashes").join(target.name);
    let mut hasher = DefaultHasher::new();
    input.hash(&mut hasher);
    let file = folder.join(format!("crash-{:016x}", hasher.finish()));
    fs::create_dir_all(&folder).and_then(|()| fs::write(&file, input)).unwrap();
    eprintln!("{}", String::from_utf8_lossy(input));
    eprintln!("this input is {}; again: cargo xtask fuzz {} --replay {0}", file.display(), target.name);
    resume_unwind(panic);
}

/// One input, made of the seeds.
fn mutated(seeds: &[Vec<u8>], rng: &mut Rng) -> Vec<u8> {
    let mut input = rng.choice(seeds).cloned().unwrap_or_default();
    for _ in 0..rng.usize(1..=EDITS_MAX) {
        let at = rng.usize(0..=input.len());
        let end = (at + rng.usize(1..=16)).min(input.len());
        match rng.u8(0..8) {
            0 => drop(input.drain(at..end)),
            1 => input.insert(at, rng.u8(..)),
            2 => drop(input.splice(at..at, rng.choice(TOKENS).copied().unwrap_or_default().iter().copied())),
            3 if at < input.len() => input[at] ^= 1 << rng.u8(0..8),
            4 if at < input.len() => input[at] = rng.u8(..),
            5 => {
                let copy = input[at..end].to_vec();
                let to = rng.usize(0..=input.len());
                input.splice(to..to, copy);
            }
            6 => {
                // The end of another seed behind the beginning of this one.
                let other = rng.choice(seeds).cloned().unwrap_or_default();
                input.truncate(at);
                input.extend_from_slice(&other[rng.usize(0..=other.len())..]);
            }
            _ => {
                let to = rng.usize(0..=input.len());
                let (low, high) = (at.min(to), at.max(to));
                input[low..high].reverse();
            }
        }
        input.truncate(INPUT_BYTES_MAX);
    }
    input
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mutations_differ_and_stay_small() {
        let seeds = [b"GET / HTTP/1.1\r\nHost: a\r\n\r\n".to_vec(), vec![b'x'; INPUT_BYTES_MAX]];
        let mut rng = Rng::with_seed(7);
        let all: std::collections::BTreeSet<Vec<u8>> = (0..1000).map(|_| mutated(&seeds, &mut rng)).collect();
        assert!(all.len() > 900, "{} of 1000 differ", all.len());
        assert!(all.iter().all(|input| input.len() <= INPUT_BYTES_MAX));
    }

    #[test]
    fn a_panic_is_passed_on_with_its_input_in_a_file() {
        fn picky(input: &[u8]) {
            assert!(!input.starts_with(b"GET"), "planted");
        }
        let target = Target { name: "h1_request_planted", run: picky };
        checked(&target, b"POST");
        let outcome = catch_unwind(|| checked(&target, b"GET /planted"));
        assert!(outcome.is_err());
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/fuzz/crashes/h1_request_planted");
        let files: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert_eq!(files.iter().map(|file| fs::read(file).unwrap()).collect::<Vec<_>>(), [b"GET /planted"]);
        fs::remove_dir_all(folder).unwrap();
    }
}
