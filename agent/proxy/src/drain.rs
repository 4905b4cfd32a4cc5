//! Draining: accept no more, let open connections end by themselves until a deadline, list what is left, then reset it.

use std::rc::Rc;
use std::time::{Duration, Instant};

use heddle_telemetry::Reason;
use tokio::sync::oneshot;
use tokio::time::timeout_at;

use crate::registry::{ConnectionView, Predicate};
use crate::worker::Worker;

/// How long cut connections may take to leave; they need one turn of their worker.
const CUT_GRACE: Duration = Duration::from_secs(1);

/// How a drain ended.
#[derive(Clone, Debug, Default)]
pub struct DrainReport {
    /// Connections that outlived the deadline and were reset with [`Reason::DrainDeadline`], as they were just before.
    pub cut: Vec<ConnectionView>,
}

/// One worker's part; its listeners are closed already.
pub(crate) async fn run(worker: Rc<Worker>, deadline: Instant, reply: oneshot::Sender<Vec<ConnectionView>>) {
    let mut cut = Vec::new();
    if timeout_at(deadline.into(), worker.table.empty()).await.is_err() {
        let all: Predicate = std::sync::Arc::new(|_| true);
        cut = worker.table.list(&all, usize::MAX).connections;
        worker.table.close(&all, Reason::DrainDeadline);
        if tokio::time::timeout(CUT_GRACE, worker.table.empty()).await.is_err() {
            tracing::error!(worker = worker.index, left = worker.table.len(), "connections did not end when cut");
        }
    }
    // Connections to HTTP/2 servers outlive the last request by their goodbye, which takes as long as the server lets it.
    worker.pool_h2.clear();
    if timeout_at(deadline.into(), worker.links.empty()).await.is_err() {
        worker.links.cut();
        let _ = tokio::time::timeout(CUT_GRACE, worker.links.empty()).await;
    }
    let _ = reply.send(cut);
}
