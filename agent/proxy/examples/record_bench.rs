//! What the recording of one request costs (issue 3: at most 1 µs), as a JSON line:
//! `cargo run --release -p heddle-proxy --example record_bench`.
//!
//! The best of several rounds: the noise of a shared machine only adds.

const ROUNDS: usize = 20;
const REQUESTS: u32 = 200_000;

fn main() {
    let each = |_| heddle_proxy::measure::record_requests(REQUESTS).0.as_secs_f64() * 1e6 / f64::from(REQUESTS);
    let best = (0..ROUNDS).map(each).fold(f64::INFINITY, f64::min);
    println!("{{\"metric\":\"recording one request\",\"value\":{best:.4},\"unit\":\"µs\"}}");
}
