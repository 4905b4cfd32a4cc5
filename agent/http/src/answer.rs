//! What the agent itself answers when it cannot forward: status, reason word, gRPC status.

use heddle_telemetry::Reason;

use crate::h1::ResponseHead;

/// The status a client gets for a reason; `None` where there is nothing to answer (the client is gone, or only a reset is honest).
pub fn status(reason: Reason) -> Option<u16> { todo!() }
/// The gRPC status of an HTTP status (gRPC's http-grpc-status-mapping).
pub fn grpc_status(http_status: u16) -> u8 { todo!() }
/// The gRPC status for a reason (timeouts are DEADLINE_EXCEEDED's business of the client: ours are UNAVAILABLE, budget is RESOURCE_EXHAUSTED …).
pub fn grpc_status_of(reason: Reason) -> u8 { todo!() }
/// Fills `head` with the HTTP/1 answer and returns its body (plain text, the reason's sentence). `reveal`: add `x-heddle-reason`
/// (inside the mesh only).
pub fn h1(reason: Reason, status: u16, reveal: bool, head: &mut ResponseHead) -> &'static str { todo!() }
/// The HTTP/2 answer: headers, and the body; trailers-only with status 200 for gRPC, whose body is empty.
pub fn h2(reason: Reason, status: u16, grpc: bool, reveal: bool) -> (http::Response<()>, &'static str) { todo!() }
/// The canonical reason phrase of a status.
pub fn phrase(status: u16) -> &'static str { todo!() }
